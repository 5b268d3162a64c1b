"""The processes that decode pictures: one that ended while it was free costs no picture."""

import asyncio
import os
import signal
from io import BytesIO

from PIL import Image

from serving.decoder import DecodeBounds, Decoder


def test_a_process_ignores_the_terminals_interrupt_and_one_that_was_killed_is_replaced():
    file = BytesIO()
    Image.new("RGB", (3, 2), (9, 8, 7)).save(file, "PNG")

    async def course() -> None:
        # So short a time that no process starts in it; one that was started early has more, too.
        decoder = Decoder(DecodeBounds(seconds=0.01), processes=1)
        await decoder.start()
        first, _ = await decoder.decode(file.getvalue())
        await decoder.close()
        decoder = Decoder(DecodeBounds(), processes=1)
        await decoder.decode(file.getvalue())
        (process,) = decoder._free  # pyright: ignore[reportPrivateUsage]
        os.kill(process.pid, signal.SIGINT)
        assert (await decoder.decode(file.getvalue()))[0] == first
        assert decoder._free == [process]  # pyright: ignore[reportPrivateUsage]
        process.kill()
        await process.wait()
        assert (await decoder.decode(file.getvalue()))[0] == first
        await decoder.close()

    asyncio.run(course())

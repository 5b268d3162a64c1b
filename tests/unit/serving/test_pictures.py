"""Pictures in memory: those without a question make room for others."""

import asyncio
from typing import cast

import pytest

from client.data.file_modality import NO_FACTS, HeaderFacts
from serving.decoder import Decoder
from serving.pictures import NoRoom, Pictures


class Undecoding:
    """A picture's bytes are its pixels."""

    async def decode(self, content: bytes) -> tuple[bytes, HeaderFacts]:
        return content, NO_FACTS


def test_pictures_without_a_question_make_room_the_longest_unused_first():
    async def course() -> None:
        forgotten: list[str] = []
        pictures = Pictures(
            cast(Decoder, Undecoding()), lambda path: forgotten.append(str(path)), most_bytes=10
        )
        async with pictures.decoded(b"four") as asked:
            async with pictures.decoded(b"4 + ") as second:
                paths = [str(second.path)]
            async with pictures.decoded(b"22") as third:
                paths.append(str(third.path))
            assert forgotten == []
            async with pictures.decoded(b"3 ."):
                assert forgotten == paths[:1] and asked.path.read_bytes() == b"four"
                with pytest.raises(NoRoom):
                    async with pictures.decoded(b"seven b"):
                        pass
            # What found no room is decoded again when it is asked for again.
            assert asked.size == 4
        async with pictures.decoded(b"seven b") as now:
            assert now.path.read_bytes() == b"seven b"
        pictures.close()

    asyncio.run(course())

"""Strangers at a server that answers whatever it likes."""

import asyncio
from collections import Counter

import pytest

from simulation.chaos.strangers import besiege

#: TLS's word for a message that is none, which is no HTTP.
ALERT = b"\x15\x03\x01\x00\x02\x02\x16"


async def outcomes_at(answer: bytes, seconds: float) -> Counter[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    async with server:
        return await besiege("127.0.0.1", server.sockets[0].getsockname()[1], 1, stop)


@pytest.mark.parametrize("answer", [ALERT, b"\r\n"])
def test_a_stranger_who_is_answered_in_no_http_goes_on(answer: bytes):
    found = asyncio.run(outcomes_at(answer, 1.0))
    # Its tenth attempt is without TLS, and was its last.
    assert found.total() > 20
    assert {outcome.rpartition(": ")[2] for outcome in found} == {"closed"}

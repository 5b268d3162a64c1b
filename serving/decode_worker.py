"""The process that decodes pictures for the server: what a hostile file breaks is this process.

It reads pictures from standard input and writes each one's pixels, or what is wrong with it, to
standard output; a message is its kind (a byte), its length (8 bytes) and its content. Pixels are
an uncompressed BMP after what the file's header says of them. Memory is bounded, and nothing is
written to the disk: neither a picture nor, in a crash, this process's memory.
"""

import os
import resource
import signal
import struct
import sys
from io import BytesIO
from typing import IO, Final

from client.data.file_modality import header_facts
from client.data.images import decode_image, decoder_warnings_ignored
from common.errors import DataError
from serving.memory_picture import picture_in_memory

PICTURE: Final = b"P"
REFUSED: Final = b"R"
#: The kind and the length of a message.
HEADER: Final = struct.Struct(">cQ")
#: Bytes of DICOM's code of a modality, and of a body part, filled with spaces; of other files all
#: are spaces.
CODE_BYTES: Final = 16
FACTS_BYTES: Final = 2 * CODE_BYTES


def main() -> None:
    """Decode pictures until standard input ends; arguments are the most pixels and bytes."""
    most_pixels, memory = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A terminal's Ctrl-C is for the server, which closes standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a library prints must not get between the messages.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with decoder_warnings_ignored():
        while header := sys.stdin.buffer.read(HEADER.size):
            _, length = HEADER.unpack(header)
            _write(out, *_decoded(sys.stdin.buffer.read(length), most_pixels))


def _decoded(content: bytes, most_pixels: int) -> tuple[bytes, bytes]:
    with picture_in_memory(content) as file:
        try:
            facts = header_facts(file)
            said = [
                text.encode("ascii", "ignore")[:CODE_BYTES].ljust(CODE_BYTES)
                for text in (facts.modality, facts.body_part)
            ]
            pixels = BytesIO(b"".join(said))
            pixels.seek(FACTS_BYTES)
            decode_image(file, most_pixels).save(pixels, "BMP")
        except DataError as error:
            return REFUSED, str(error).replace(str(file), "picture").encode()
        except MemoryError:
            return REFUSED, b"picture: found one that takes too much memory, expected a usual one"
    return PICTURE, pixels.getvalue()


def _write(out: IO[bytes], kind: bytes, content: bytes) -> None:
    out.write(HEADER.pack(kind, len(content)))
    out.write(content)
    out.flush()


if __name__ == "__main__":
    main()

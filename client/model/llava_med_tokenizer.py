"""The tokenizer that LLaVA-Med ships, read from its sentencepiece model alone.

transformers reads such a file with the package `sentencepiece`, whose generated code asks
for a newer protobuf than flwr 1.41 allows (sentencepiece 0.2.3), and reports that as a
missing `tiktoken`. It also merges pieces in the order of their ids and not of their scores,
which tells two words with two spaces between them otherwise than the reference does
(transformers 5.23). Of the file we need the pieces and their scores: the format is
protobuf's, and few lines read it.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from transformers import LlamaTokenizer
from transformers.tokenization_utils_base import generate_merges

from common.errors import ModelError

#: The token that stands for the image: an id that no text yields, so that the vocabulary
#: keeps its size. Mistral's piece of the byte 0.
IMAGE_TOKEN: Final = 3

_FIRST_PIECES: Final = ["<unk>", "<s>", "</s>", "<0x00>"]
#: `TrainerSpec.ModelType.BPE` of sentencepiece_model.proto.
_BPE: Final = 2


def read_tokenizer(file: Path, vocabulary: int) -> LlamaTokenizer:
    """The tokenizer of a sentencepiece model, which must have `vocabulary` pieces.

    Every text gets a space in front, and so does what follows a special token in it, as
    with `legacy=True` in the reference. Of `tokenizer_config.json` nothing is taken.

    Raises:
        ModelError: the file is missing, damaged or of another kind.
    """
    scores, kind = _read(file)
    if kind != _BPE:
        raise ModelError(f"{file}: found a sentencepiece model of kind {kind}, expected BPE (2)")
    first = list(scores)[: len(_FIRST_PIECES)]
    if first != _FIRST_PIECES:
        raise ModelError(
            f"{file}: found the pieces {first} in front, "
            f"expected {_FIRST_PIECES}, of which the last will stand for the image"
        )
    if len(scores) != vocabulary:
        raise ModelError(
            f"{file}: found {len(scores)} pieces, expected {vocabulary} (vocab_size of config.json)"
        )
    ids = {piece: number for number, piece in enumerate(scores)}
    merges = generate_merges(ids, scores)
    return LlamaTokenizer(vocab=ids, merges=merges, legacy=True, pad_token="<unk>")


def _read(file: Path) -> tuple[dict[str, float], int]:
    """The pieces with their scores, in the order of their ids, and the kind of model."""
    try:
        blob = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file}: the tokenizer can't be read ({error.strerror})") from None
    scores: dict[str, float] = {}
    kind = 1  # Where the file says nothing.
    try:
        for number, value in _fields(blob):
            # ModelProto: 1 is a SentencePiece; 2 is the TrainerSpec, whose 3 is the kind.
            if number == 1 and isinstance(value, bytes):
                piece, score = _piece(value)
                scores[piece] = score
            elif number == 2 and isinstance(value, bytes):
                kind = next((v for n, v in _fields(value) if n == 3 and isinstance(v, int)), kind)
    except ValueError:
        raise ModelError(f"{file}: found a truncated file, or no sentencepiece model") from None
    return scores, kind


def _piece(message: bytes) -> tuple[str, float]:
    """Text and score of a SentencePiece: its fields 1 and 2."""
    text, score = "", 0.0
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            (score,) = struct.unpack("<f", value)
    return text, score


def _fields(blob: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protobuf message's fields; a message in it stays bytes.

    Raises:
        ValueError: the message is cut off, or none.
    """
    at = 0
    while at < len(blob):
        key, at = _varint(blob, at)
        match key & 7:
            case 0:
                value, at = _varint(blob, at)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(blob, at)
            case 5:
                size = 4
            case kind:
                raise ValueError(f"no field has the kind {kind}")
        if at + size > len(blob):
            raise ValueError("the last field is cut off")
        yield key >> 3, blob[at : at + size]
        at += size


def _varint(blob: bytes, at: int) -> tuple[int, int]:
    """The number that starts at `at`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(blob):
            break
        value |= (blob[at] & 0x7F) << shift
        at += 1
        if blob[at - 1] < 0x80:
            return value, at
    raise ValueError("a number without an end")

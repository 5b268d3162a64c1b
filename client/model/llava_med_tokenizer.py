"""The tokenizer that LLaVA-Med ships, built from its sentencepiece model.

transformers would read such a file with the package `sentencepiece`, whose generated code
needs a newer protobuf than flwr 1.42 allows (sentencepiece 0.2.3), and reports that as a
missing `tiktoken`. It also merges pieces in the order of their ids instead of their scores,
which tokenizes two words with two spaces between them differently from the reference
(transformers 5.24). Only the pieces and their scores are needed, and transformers' own copy of
the file format reads them.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError
from transformers import LlamaTokenizer
from transformers.tokenization_utils_base import generate_merges

from common.errors import ModelError

#: The token that marks the image: an id that no text yields, so that the vocabulary keeps its
#: size. Mistral's piece of the byte 0.
IMAGE_TOKEN: Final = 3

_FIRST_PIECES: Final = ["<unk>", "<s>", "</s>", "<0x00>"]
#: `TrainerSpec.ModelType.BPE` of sentencepiece_model.proto.
_BPE: Final = 2


def read_tokenizer(file: Path, vocabulary: int) -> LlamaTokenizer:
    """Read the tokenizer of a sentencepiece model, which must have `vocabulary` pieces.

    A space is added before every text, and after a special token in it, as with `legacy=True`
    in the reference. `tokenizer_config.json` is not used.

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
            f"expected {_FIRST_PIECES}, of which the last marks the image"
        )
    if len(scores) != vocabulary:
        raise ModelError(
            f"{file}: found {len(scores)} pieces, expected {vocabulary} (vocab_size of config.json)"
        )
    ids = {piece: number for number, piece in enumerate(scores)}
    merges = generate_merges(ids, scores)
    return LlamaTokenizer(vocab=ids, merges=merges, legacy=True, pad_token="<unk>")


def _read(file: Path) -> tuple[dict[str, float], int]:
    """Return the scores by piece, in the order of their ids, and the model type."""
    # Of transformers' two copies the one for protobuf from 4 on (5.24); registers its types.
    from transformers.utils import sentencepiece_model_pb2_new

    proto: Any = sentencepiece_model_pb2_new
    try:
        model = proto.ModelProto.FromString(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file}: the tokenizer can't be read ({error.strerror})") from None
    except DecodeError:
        model = None
    # protobuf returns text that is not UTF-8 as bytes.
    if model is None or not all(isinstance(piece.piece, str) for piece in model.pieces):
        raise ModelError(f"{file}: found a truncated file, or no sentencepiece model")
    scores = {piece.piece: piece.score for piece in model.pieces}
    return scores, model.trainer_spec.model_type

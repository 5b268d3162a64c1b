"""Notes of `fedmslora data check`: what leaves a task usable, and may be a mistake all the same."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from client.data.image_check import DecodedImages
from client.data.records import quoted
from client.data.task import TEST_FILE, TRAIN_FILE, TaskContents
from common.printable import counted

#: Letters of a text beyond which LLaVA-Med can't have read it whole in training: 2048 tokens, of
#: which a picture takes 576, of about 3.5 letters each.
LONG_TEXT: Final = 5000


def text_notes(contents: TaskContents) -> Iterator[str]:
    """Yield a note for each file with texts that are longer than a model reads."""
    for file, examples in ((TRAIN_FILE, contents.train), (TEST_FILE, contents.test)):
        # Not by id: several questions may have one.
        lengths = [(len(one.question) + len(one.answer), one.question_id) for one in examples]
        long = [one for one in lengths if one[0] > LONG_TEXT]
        if long:
            most, name = max(long, key=lambda one: one[0])
            yield (
                f"{file}: found {counted(len(long), 'question')} of more than {LONG_TEXT} letters "
                f"with the answer, the longest {quoted(name)} of {most}: a model that "
                "was trained on 2048 tokens has read none that long"
            )


def image_notes(folder: Path, decoded: DecodedImages) -> Iterator[str]:
    """Yield notes on images that show nothing, that may name a patient, and of mixed modalities."""
    if decoded.flat:
        flat = f"{counted(len(decoded.flat), 'image')} of one level{_first(decoded.flat, folder)}"
        yield f"found {flat}: there is nothing to be seen"
    burned = [image for image, facts in decoded.facts.items() if facts.burned_in]
    if burned:
        yield (
            f"found {counted(len(burned), 'image')} with text in the pixels, by the header"
            f"{_first(burned, folder)}: it may name a patient, and a model can learn it by heart"
        )
    codes = Counter(facts.modality for facts in decoded.facts.values() if facts.modality)
    if len(codes) > 1:
        listed = ", ".join(f"{count} {code}" for code, count in codes.most_common())
        yield f"found images of {len(codes)} modalities by their headers, expected one: {listed}"


def _first(images: Sequence[Path], folder: Path) -> str:
    name = quoted(images[0].relative_to(folder).as_posix())
    return f" ({name})" if len(images) == 1 else f" ({name} and others)"


def summed(sentences: Sequence[str]) -> list[str]:
    """Return sentences with those that differ in the question alone as one, with their number."""
    groups: dict[str, list[str]] = {}
    for sentence in sentences:
        where, _, rest = sentence.partition(": found ")
        file = where.partition(": question ")[0]
        groups.setdefault(f"{file}: {rest}", []).append(sentence)
    return [
        same[0]
        if len(same) == 1
        else f"{same[0]}; so have {counted(len(same) - 1, 'more question')} of this file"
        for same in groups.values()
    ]

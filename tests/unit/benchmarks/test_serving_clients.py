"""What the clients of `bench serve` ask."""

import base64
import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving.clients import Visits, bodies

SIZE = Visits(visits=1, max_new_tokens=3, questions=3, side=8)


@pytest.mark.parametrize(("cold", "files"), [(False, 1), (True, 3)])
def test_a_cold_question_comes_with_a_file_of_its_own_of_the_same_pixels(cold: bool, files: int):
    asked = [
        json.loads(body)["messages"][0]["content"] for body in bodies((1, 2, 3), SIZE, cold=cold)
    ]
    pngs = [
        base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
        for picture, _ in asked
    ]
    assert len(set(pngs)) == files
    assert len({question["text"] for _, question in asked}) == 3
    first, *others = (np.asarray(Image.open(BytesIO(png))) for png in pngs)
    assert all(np.array_equal(first, other) for other in others)

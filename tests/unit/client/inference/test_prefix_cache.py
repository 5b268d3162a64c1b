"""The order in which a test set is answered."""

from pathlib import Path

from client.inference.prefix_cache import answering_order

A, B, C = Path("a"), Path("b"), Path("c")


def test_questions_are_ordered_by_image_then_length_and_images_by_their_longest_question():
    images = [A, B, A, C, B]
    lengths = [9, 2, 4, 7, 3]
    assert answering_order(images, lengths) == [1, 4, 3, 2, 0]


def test_images_of_one_question_come_by_length_and_equals_as_they_are():
    assert answering_order([A, B, C], [5, 4, 4]) == [1, 2, 0]


def test_images_with_equally_long_questions_are_not_mixed():
    assert answering_order([A, B, A, B], [4, 4, 4, 4]) == [0, 2, 1, 3]


def test_an_images_questions_of_several_lengths_stay_together():
    assert answering_order([A, B, A, B], [5, 5, 3, 3]) == [2, 0, 3, 1]

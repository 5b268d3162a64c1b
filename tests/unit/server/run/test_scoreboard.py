"""The score matrix: what is recorded is where it belongs."""

from common.exchange import Scores
from common.plan.file import parse_plan
from common.plan.plan import Plan
from server.run.scoreboard import Scoreboard
from tests.unit.small_round import document


def two_tasks() -> Plan:
    stage = document()["stages"][0]
    stages = [stage, {**stage, "name": "two", "task": "u", "metric": "f1"}]
    return parse_plan({**document(), "stages": stages}, "p")


def scores(questions: int, **metrics: float) -> Scores:
    return Scores(
        order="0" * 64, site="a", questions=questions, metrics=metrics, majority={"f1": 0.125}
    )


def test_each_task_is_shown_by_its_own_metric_where_it_was_scored():
    board = Scoreboard(two_tasks())
    board.record_zero_shot(0, {"a": scores(4, accuracy=0.25, f1=0.5)})
    board.record_release(0, {"accuracy": 0.75, "f1": 0.5})
    board.record_release(1, {"accuracy": 0.5, "f1": 1.0})
    board.record_scores(1, 0, {"a": scores(4, accuracy=0.5), "b": scores(12, accuracy=1.0)})
    assert board.matrix() == ((0.75, None), (0.875, 1.0))
    assert board.row(board.before) == (0.25, None)
    assert board.majority == {0: {"f1": 0.125}}
    assert board.when_learned() == ({"accuracy": 0.75, "f1": 0.5}, {"accuracy": 0.5, "f1": 1.0})


def test_what_the_router_chose_is_a_matrix_of_its_own():
    board = Scoreboard(two_tasks())
    assert board.routed() is None
    chosen = scores(
        4, f1=0.5, router_stage=0.75, router_modality=1.0, router_known=0.25, router_confidence=0.9
    )
    board.record_routed(1, 1, {"a": chosen})
    routed = board.routed()
    assert routed is not None
    assert routed.scores == ((None, None), (None, 0.5))
    assert routed.stage == ((None, None), (None, 0.75))
    assert routed.modality == ((None, None), (None, 1.0))
    assert routed.known == ((None, None), (None, 0.25))
    assert routed.confidence == ((None, None), (None, 0.9))
    assert board.matrix() == ((None, None), (None, None))


def test_closed_questions_among_their_options_are_matrices_where_a_task_has_them():
    board = Scoreboard(two_tasks())
    board.record_release(1, {"f1": 1.0})
    assert board.among_options() is None
    board.record_release(
        0,
        {
            "accuracy": 0.5,
            "accuracy_among_options": 0.75,
            "accuracy_with_options": 0.25,
            "answered_an_option": 1.0,
        },
    )
    found = board.among_options()
    assert found is not None
    assert found.among == ((0.75, None), (None, None))
    assert found.free == ((0.25, None), (None, None))
    assert found.listed == ((1.0, None), (None, None))


def test_tasks_with_classes_have_zero_shot_and_majority_beside_each_measure_and_auc_by_site():
    stage = {**document()["stages"][0], "classes": ["x", "y"]}
    free = {**document()["stages"][0], "name": "two", "task": "u"}
    board = Scoreboard(parse_plan({**document(), "stages": [stage, free]}, "p"))

    def of(questions: int, **metrics: float) -> Scores:
        majority = {"accuracy": 0.25, "auc": 0.5}
        return Scores(
            order="0" * 64, site="a", questions=questions, metrics=metrics, majority=majority
        )

    board.record_zero_shot(0, {"a": of(4, accuracy=0.5, auc=0.625)})
    board.record_scores(0, 0, {"a": of(4, accuracy=0.75, auc=0.5), "b": of(12, auc=1.0)})
    board.record_scores(1, 0, {"a": of(4, auc=0.75, zero_shot_auc=0.25), "b": of(4, accuracy=1.0)})
    board.record_scores(1, 1, {"a": of(4, accuracy=1.0)})
    found = board.class_scores()
    assert found is not None
    assert found.scores["auc"] == ((0.875, None), (0.75, None))
    assert found.scores["accuracy"] == ((0.75, None), (1.0, None))
    assert found.zero_shot["auc"] == ((0.625, None), (0.25, None))
    assert found.majority == {
        "accuracy": (0.25, None), "balanced_accuracy": (None, None), "auc": (0.5, None),
    }  # fmt: skip
    assert found.auc_by_site == {
        "a": ((0.5, None), (0.75, None)), "b": ((1.0, None), (None, None)),
    }  # fmt: skip
    assert Scoreboard(two_tasks()).class_scores() is None

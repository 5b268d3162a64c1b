"""A program ends with a sentence and an exit code where its user can correct what is wrong."""

import pytest

from common.errors import PlanError
from simulation.command_line.exit_codes import with_exit_codes


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (PlanError("plan.yaml: rounds: found 0"), 2, "plan.yaml: rounds: found 0\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_what_a_user_can_correct_is_a_sentence(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
):
    @with_exit_codes
    def main() -> int:
        raise error

    assert main() == code
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", told)


def test_a_bug_keeps_its_traceback_and_a_result_its_code():
    @with_exit_codes
    def fails() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()

    @with_exit_codes
    def main(code: int) -> int:
        """Say what it does."""
        return code

    assert main(1) == 1
    assert (main.__name__, main.__doc__) == ("main", "Say what it does.")

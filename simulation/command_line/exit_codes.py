"""How this package's programs end: with a sentence where the user can correct what is wrong."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec

from common.errors import Refusal

REFUSED: Final = 2
INTERRUPTED: Final = 130

_P = ParamSpec("_P")


def with_exit_codes(main: Callable[_P, int]) -> Callable[_P, int]:
    """Return `main` with a sentence and an exit code for a refusal (2) and for Ctrl-C (130)."""

    @wraps(main)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except Refusal as refusal:
            print(refusal, file=sys.stderr)
            return REFUSED
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return INTERRUPTED

    return run

"""OpenAI's document of an error, and which exception becomes which."""

import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from common.errors import BankError, DataError
from serving.pictures import NoRoom

_LOG: Final = logging.getLogger("fedmslora.serve")
#: Of every response that is no answer: nothing is stored, and the page may load nothing else.
HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
#: OpenAI's types of errors, by status; all others are of the server.
_TYPES: Final = {401: "authentication_error", 404: "not_found_error", 503: "overloaded"}


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error by OpenAI's document; of 503 with the seconds after which to try again."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    retry = {"retry-after": "1"} if status == 503 else {}
    return JSONResponse(body, status, {**HEADERS, **retry, **(headers or {})})


def closing(status: int, message: str) -> HTTPException:
    """Return a refusal that ends the connection: the rest of the body stays unread."""
    return HTTPException(status, message, {"connection": "close"})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail, error.headers)


async def _refusal(request: Request, error: Exception) -> Response:
    return error_response(400, str(error))


async def _bank_error(request: Request, error: Exception) -> Response:
    # Names files of the bank, which is for the log.
    _LOG.error("%s", error)
    return error_response(
        500, "the bank's files were changed or can't be read: see the server's log"
    )


async def _no_room(request: Request, error: Exception) -> Response:
    return error_response(503, "picture: found too many in all requests, try again")


async def _disconnected(request: Request, error: Exception) -> Response:
    return error_response(400, "the client has gone")


async def _failure(request: Request, error: Exception) -> Response:
    return error_response(500, "the answer failed: see the server's log")


HANDLERS: Final[Mapping[Any, Callable[[Request, Exception], Coroutine[Any, Any, Response]]]] = {
    HTTPException: _http_error,
    DataError: _refusal,
    BankError: _bank_error,
    NoRoom: _no_room,
    ClientDisconnect: _disconnected,
    Exception: _failure,
}

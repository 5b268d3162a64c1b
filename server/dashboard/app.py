"""The coordinator's dashboard: one page that shows, and changes nothing, on this machine alone."""

import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common.errors import Refusal
from server.coordinator.state import State
from server.coordinator.superlink import SuperLink
from server.dashboard.status_document import status_document

#: Only this machine reaches it: the page has no password, and names sites.
HOST: Final = "127.0.0.1"
_PAGE: Final = Path(__file__).parent / "page"
_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
#: Whatever a site says of itself is text; were it ever more, no script but the page's own runs.
HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def dashboard_app(status: Callable[[str | None], Mapping[str, Any]]) -> Starlette:
    """Return the page and its data as an ASGI app.

    Args:
        status: the status of the named run, or of the latest, as `status --json` prints it.
    """
    lock = Lock()

    def locked(name: str | None) -> Mapping[str, Any]:
        # One connection to the SuperLink serves all tabs.
        with lock:
            return status(name)

    async def document(request: Request) -> Response:
        try:
            found = await run_in_threadpool(locked, request.query_params.get("run"))
        except Refusal as refusal:
            return JSONResponse({"error": str(refusal)}, 404, HEADERS)
        except OSError as error:
            said = f"{error.filename or 'the disk'}: can't be read ({error.strerror})"
            return JSONResponse({"error": said}, 500, HEADERS)
        return JSONResponse(dict(found), headers=HEADERS)

    async def static(request: Request) -> Response:
        name = {"/": "index.html"}.get(request.url.path, request.url.path.lstrip("/"))
        file = _PAGE / name
        headers = {**HEADERS, "content-type": f"{_TYPES[file.suffix]}; charset=utf-8"}
        return Response(file.read_bytes(), headers=headers)

    # Another site's page, whose name is made to lead here, has another Host.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    pages = [Route(path, static) for path in ("/", "/page.css", "/page.js")]
    return Starlette(routes=[*pages, Route("/status.json", document)], middleware=[hosts])


def dashboard_config(app: Starlette, port: int) -> uvicorn.Config:
    """Return uvicorn's settings: on this machine alone."""
    return uvicorn.Config(
        app,
        host=HOST,
        port=port,
        server_header=False,
        access_log=False,
        log_level="error",
        limit_concurrency=64,
        ws="none",
    )


def main(root: Path, port: int) -> None:
    """Serve the dashboard of the coordinator in this folder until SIGTERM."""
    state = State.open(root)
    with closing(SuperLink(state)) as superlink:
        app = dashboard_app(lambda name: status_document(state, superlink, name))
        uvicorn.Server(dashboard_config(app, port)).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

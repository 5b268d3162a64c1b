"""The server's HTTP side: OpenAI's chat completions, the page, health and metrics, with bounds.

Whoever has no token gets the page and the health, and no byte of a body is read. Nothing of a
picture or a question is logged or written; a picture is in memory while it is asked about, and
shortly after (serving/pictures.py).
"""

import asyncio
import hmac
import json
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Final

from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.model.backbone import CachesImages
from client.orders.ask import ResidentBank
from common.bank.release import Release
from common.errors import BankError, DataError
from serving.batching import BatchedAnswers, Batching, Reply
from serving.chat import (
    ROUTER,
    ChatBounds,
    ChatRequest,
    chooses_by_picture,
    chosen_by,
    chunks,
    completion,
    model_document,
    model_list,
    read_request,
)
from serving.decoder import DecodeBounds, Decoder
from serving.memory_picture import with_dicom_mark
from serving.metrics import ServerMetrics
from serving.openai_errors import HANDLERS, HEADERS, closing, error_response
from serving.pictures import Pictures

_PAGE: Final = Path(__file__).parent / "page"
#: What is served without a token: nothing that says anything of the bank's use.
_OPEN: Final[Mapping[str, str]] = {
    "/": "index.html",
    "/page.js": "page.js",
    "/page.css": "page.css",
}
_TYPES: Final = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_HEALTH: Final = "/healthz"
#: Longer sides of a preview are scaled down.
_PREVIEW_SIDE: Final = 1024
_TIDY_S: Final = 10.0
#: Smaller bodies are read in less time than another thread takes to begin.
_INLINE_BYTES: Final = 2**19
_TOO_LONG: Final = "body: found a longer one, expected at most {} bytes"
_DESCRIPTOR: Final = re.compile(r"/proc/self/fd/\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBounds:
    """What clients can take up.

    Attributes:
        body_bytes: most of one request; base64 makes a picture a third longer.
        bodies_bytes: most of all requests that are being read or answered.
        body_s: longest that a body may take to arrive.
        requests: most at one time; more are answered with 503.
        answer_s: longest that an answer may take, waiting included.
    """

    body_bytes: int = 64 * 2**20
    bodies_bytes: int = 512 * 2**20
    body_s: float = 20.0
    requests: int = 64
    answer_s: float = 120.0
    chat: ChatBounds = field(default_factory=ChatBounds)
    decode: DecodeBounds = field(default_factory=DecodeBounds)


class AnswerServer:
    """One bank behind HTTP; `app` is the ASGI application."""

    def __init__(
        self,
        bank: ResidentBank,
        token: str,
        bounds: ServerBounds | None = None,
        batch_size: int = 16,
        threads: int | None = None,
    ) -> None:
        """Begin to answer; whoever asks needs `token`."""
        self._bank = bank
        self._token = token.encode()
        self._bounds = bounds or ServerBounds()
        self._created = int(time.time())
        self.metrics = ServerMetrics()
        self._open = self._buffered = self._expected = 0
        self._decoder = Decoder(self._bounds.decode)
        self._pictures = Pictures(self._decoder, self._forget)
        batching = Batching(size=batch_size, threads=threads)
        self._answers = BatchedAnswers(bank, batching, lambda: self._expected)
        inner = Starlette(
            routes=[
                *(Route(path, partial(_static, _PAGE / name)) for path, name in _OPEN.items()),
                Route(_HEALTH, self._health),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/preview", self._preview, methods=["POST"]),
            ],
            exception_handlers=HANDLERS,
            lifespan=self._lifespan,
        )
        self.app: ASGIApp = _Guard(inner, self)

    # The guard: what is decided before a body is read.

    def refused(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the reason for which a request is refused unread."""
        headers = {name: value for name, value in scope["headers"]}
        if scope["path"] in _OPEN or scope["path"] == _HEALTH:
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
            return 401, "found no token, or another one, expected 'Authorization: Bearer TOKEN'"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._bounds.body_bytes:
            return 413, _TOO_LONG.format(self._bounds.body_bytes)
        coding = headers.get(b"content-encoding", b"identity").strip().lower()
        if coding != b"identity":
            return 415, "content-encoding: found a packed body, expected none"
        if self._open >= self._bounds.requests:
            return 503, f"found {self._open} open requests, expected fewer: try again"
        return None

    async def guarded(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is not refused, and count it."""
        self._open += 1
        self.metrics.requests.set(self._open)
        try:
            await app(scope, receive, send)
        finally:
            self._open -= 1
            self.metrics.requests.set(self._open)

    # The routes.

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _models(self, request: Request) -> Response:
        return JSONResponse(model_list(self._bank.bank, self._created))

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in [one["id"] for one in model_list(self._bank.bank, self._created)["data"]]:
            raise HTTPException(404, "found no such model, expected one of /v1/models")
        return JSONResponse(model_document(name, self._created))

    async def _chat(self, request: Request) -> Response:
        self._expected += 1
        expected = True
        started = time.monotonic()
        try:
            async with self._body(request) as body, self._in_time():
                started = time.monotonic()
                if len(body) > _INLINE_BYTES:
                    asked = await asyncio.to_thread(read_request, body, self._bounds.chat)
                else:
                    asked = read_request(body, self._bounds.chat)
                release = self._release(asked.model)
                async with self._pictures.decoded(asked.picture) as picture:
                    self._expected, expected = self._expected - 1, False
                    answering = self._answers.ask(
                        picture, asked.question, release, asked.max_new_tokens
                    )
                    reply = await _unless_gone(request, answering)
        except DataError as error:
            # Which descriptor a picture had says nothing to anybody.
            raise DataError(_DESCRIPTOR.sub("picture", str(error))) from None
        finally:
            self._expected -= expected
        self._count(reply, time.monotonic() - started)
        return self._reply(asked, reply)

    async def _preview(self, request: Request) -> Response:
        """Return the picture as the model's preprocessing gets it, as PNG."""
        async with self._body(request) as body, self._in_time():
            dicom = request.headers.get("content-type", "").startswith("application/dicom")
            content = with_dicom_mark(body) if dicom else body
            if not content:
                raise DataError("picture: found nothing, expected a picture file")
            async with self._pictures.decoded(content) as picture:
                png = await asyncio.to_thread(_preview_of, picture.path)
        return Response(png, media_type="image/png")

    @asynccontextmanager
    async def _in_time(self) -> AsyncGenerator[None]:
        """Refuse with 504 what takes longer than an answer may."""
        try:
            async with asyncio.timeout(self._bounds.answer_s):
                yield
        except TimeoutError:
            raise HTTPException(504, "found no answer in time, expected a shorter queue") from None

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncGenerator[bytes]:
        """Have the body of a request, whose bytes count until the end of the `with`."""
        pieces: list[bytes] = []
        try:
            await self._read(request, pieces)
            yield b"".join(pieces)
        finally:
            self._buffered -= sum(map(len, pieces))

    async def _read(self, request: Request, pieces: list[bytes]) -> None:
        """Read a body into `pieces`, within the bounds."""
        bounds, length = self._bounds, 0
        try:
            async with asyncio.timeout(bounds.body_s):
                async for piece in request.stream():
                    pieces.append(piece)
                    length += len(piece)
                    self._buffered += len(piece)
                    if length > bounds.body_bytes:
                        raise closing(413, _TOO_LONG.format(bounds.body_bytes))
                    if self._buffered > bounds.bodies_bytes:
                        raise closing(503, "body: found too many in all requests, try again")
        except TimeoutError:
            raise closing(
                408, f"body: found an incomplete one, expected it within {bounds.body_s:g} s"
            ) from None

    def _release(self, model: str) -> Release | None:
        """Return the stage that is asked; None where the picture chooses one."""
        if model == ROUTER and chooses_by_picture(self._bank.bank):
            return None
        try:
            return self._bank.bank.named(model)
        except BankError:
            raise HTTPException(
                404, "model: found another name, expected one of /v1/models"
            ) from None

    def _reply(self, asked: ChatRequest, reply: Reply) -> Response:
        if not asked.stream:
            return JSONResponse(completion(asked, self._bank.bank, reply))
        documents = [json.dumps(one) for one in chunks(asked, self._bank.bank, reply)]
        lines = [f"data: {text}\n\n" for text in (*documents, "[DONE]")]
        return StreamingResponse(iter(lines), media_type="text/event-stream")

    def _count(self, reply: Reply, seconds: float) -> None:
        routing = reply.answer.routing
        self.metrics.answers.labels(reply.answer.release.name, chosen_by(reply.answer)).inc()
        self.metrics.seconds.observe(seconds)
        self.metrics.batches.observe(reply.batch)
        if routing is not None and not routing.known:
            self.metrics.unknown.inc()

    def _forget(self, picture: Path) -> None:
        if isinstance(self._bank.backbone, CachesImages):
            self._bank.backbone.forget(picture)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        await self._decoder.start()
        tidying = asyncio.create_task(self._tidy())
        try:
            yield
        finally:
            tidying.cancel()
            with suppress(asyncio.CancelledError):
                await tidying
            await asyncio.to_thread(self._answers.close)
            self._pictures.close()
            await self._decoder.close()

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_S)
            self._pictures.drop_old()


class _Guard:
    """Refuses what is refused unread, counts every response, and hides what the inner app is."""

    def __init__(self, inner: ASGIApp, server: AnswerServer) -> None:
        self._inner = inner
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        counted = partial(self._counted, scope, send)
        refused = self._server.refused(scope)
        if refused is None:
            await self._server.guarded(self._inner, scope, receive, counted)
            return
        status, reason = refused
        # Closed, because the unread body would be taken for the next request.
        headers = {"connection": "close"}
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        await error_response(status, reason, headers)(scope, receive, counted)

    async def _counted(self, scope: Scope, send: Send, message: Message) -> None:
        if message["type"] == "http.response.start":
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self._server.metrics.responses.labels(path, message["status"]).inc()
        await send(message)


_PATHS: Final = {*_OPEN, _HEALTH, "/metrics", "/v1/models", "/v1/chat/completions", "/v1/preview"}


async def _unless_gone(request: Request, answering: Awaitable[Reply]) -> Reply:
    """Return the answer; cancel the question when the client closes its connection.

    Raises:
        ClientDisconnect: it did so before there was an answer.
    """
    answer = asyncio.ensure_future(answering)
    leaving = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        leaving.cancel()


async def _disconnect(request: Request) -> None:
    """Wait until the client closes its connection; its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _static(file: Path, request: Request) -> Response:
    headers = {**HEADERS, "content-type": f"{_TYPES[file.suffix]}; charset=utf-8"}
    return Response(file.read_bytes(), headers=headers)


def _preview_of(file: Path) -> bytes:
    with Image.open(file, formats=("BMP",)) as image:
        image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
        png = BytesIO()
        image.save(png, "PNG")
    return png.getvalue()

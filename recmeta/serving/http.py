"""The HTTP API: rank given candidates, recommend from the catalogue, health. It must never score.

Whatever a client sends gives an answer or a typed JSON error (4xx); a 503 says that no bundle can
serve. The server picks up a newly promoted bundle by itself, and keeps the one it has when the new
one is damaged.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recmeta.bundle.store import BundleStore
from recmeta.errors import BusyError, InputError, IntegrityError, NotFoundError, RecmetaError, SchemaError
from recmeta.serving.recommender import Recommender
from recmeta.settings import Settings

STATUS: dict[type[RecmetaError], int] = {
    InputError: 400,
    SchemaError: 503,  # not the client's table: features that do not fit the bundle
    NotFoundError: 404,
    IntegrityError: 503,
    BusyError: 503,
}
LONGEST_FAULT = 300
"""Characters of an error that quotes the client; a megabyte of nonsense is not sent back."""


class NoChampionError(RecmetaError):
    """No bundle can serve at this moment."""


STATUS[NoChampionError] = 503


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RankRequest(_Body):
    """Which of these items first?"""

    context: str = Field(description="the surface")
    user_id: str = Field(description="an unknown user is ordinary")
    item_ids: list[str] = Field(description="candidates; unknown ones are ordinary, repeated ones count once")


class RecommendRequest(_Body):
    """Which items of the catalogue?"""

    context: str = Field(description="the surface")
    user_id: str = Field(description="an unknown user is ordinary")
    n: int = Field(default=10, description="how many items")
    exclude_seen: bool = Field(default=True, description="leave out what the user engaged with already")


class _Json(JSONResponse):
    """JSON in ASCII: what a client sent may hold characters that UTF-8 cannot carry."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


class LimitBody:
    """ASGI middleware: a request body over ``limit`` bytes is answered 413 before anything reads it."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        """Wrap ``app``."""
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body up to the limit, then hand it on in one piece."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has left
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.limit:
                refusal = _error(413, "InputError", f"body: expected at most {self.limit} bytes, found more")
                await refusal(scope, receive, send)
                return
        whole: Message = {"type": "http.request", "body": bytes(body), "more_body": False}
        handed = False

        async def replay() -> Message:
            nonlocal handed
            if handed:
                return await receive()
            handed = True
            return whole

        await self.app(scope, replay, send)


class Champion:
    """The recommender over the current champion; looks for a newer one at most once in a while."""

    def __init__(self, settings: Settings) -> None:
        """Open the champion, if there is one that can be opened."""
        self._settings = settings
        self._store = BundleStore(settings.bundles_folder)
        self._recommender: Recommender | None = None
        self._refused: tuple[str, str] | None = None
        self._looked = float("-inf")

    def get(self) -> Recommender:
        """The recommender to use now.

        Raises:
            NoChampionError: none was promoted, or the only one cannot be opened.
        """
        if time.monotonic() - self._looked >= self._settings.serving.refresh_seconds:
            self._look()
        if self._recommender is None:
            raise NoChampionError(
                f"no bundle serves: {self._refused[1]}"
                if self._refused
                else "no bundle was promoted yet; run `recmeta nightly`"
            )
        return self._recommender

    @property
    def refused(self) -> str | None:
        """Why the newest champion is not the one that serves; None where it is."""
        return None if self._refused is None else self._refused[1]

    def _look(self) -> None:
        self._looked = time.monotonic()
        version = self._store.champion_version()
        serving = None if self._recommender is None else self._recommender.version
        if version is None or version == serving:
            self._refused = None
            return
        if self._refused is not None and self._refused[0] == version:
            return
        try:
            self._recommender = Recommender(self._settings)
            self._refused = None
        except (IntegrityError, NotFoundError, InputError) as error:
            self._refused = (version, str(error))


def create_app(settings: Settings) -> FastAPI:
    """Build the application over the workspace of ``settings``."""
    app = FastAPI(
        title="recmeta",
        description="One shared user model, an adapter per surface.",
        docs_url=None,  # its page loads scripts from elsewhere; /openapi.json holds the same
        redoc_url=None,
    )
    champion = Champion(settings)
    app.add_middleware(LimitBody, limit=settings.serving.largest_body)
    app.add_exception_handler(RecmetaError, _on_recmeta_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether a bundle serves, which one, and what serves each context."""
        recommender = champion.get()
        body: dict[str, Any] = {
            "status": "ok" if champion.refused is None else "degraded",
            "bundle": recommender.version,
            "until": recommender.until.isoformat(),
            "contexts": recommender.serves,
        }
        if champion.refused is not None:
            body["reason"] = champion.refused
        return _Json(body)

    @app.post("/v1/rank")
    async def rank(request: RankRequest) -> JSONResponse:
        """Rank the given candidates for a user in a context."""
        return _Json(champion.get().rank(request.context, request.user_id, request.item_ids).as_json())

    @app.post("/v1/recommend")
    async def recommend(request: RecommendRequest) -> JSONResponse:
        """Recommend items of the catalogue to a user in a context."""
        answer = champion.get().recommend(
            request.context, request.user_id, request.n, exclude_seen=request.exclude_seen
        )
        return _Json(answer.as_json())

    @app.get("/v1/recommend")
    async def recommend_by_query(
        context: str,
        user_id: str,
        n: Annotated[int, Query(description="how many items")] = 10,
        exclude_seen: bool = True,
    ) -> JSONResponse:
        """Recommend items of the catalogue to a user in a context."""
        return _Json(champion.get().recommend(context, user_id, n, exclude_seen=exclude_seen).as_json())

    return app


def _error(status: int, kind: str, message: str) -> JSONResponse:
    return _Json({"error": {"type": kind, "message": message}}, status_code=status)


async def _on_recmeta_error(request: Request, error: Exception) -> JSONResponse:
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    return _error(status, type(error).__name__, str(error))


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101  (registered for nothing else)
    faults = error.errors()
    told = "; ".join(
        f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in faults[:5]
    )
    return _error(400, "InputError", told if len(told) <= LONGEST_FAULT else f"{told[:LONGEST_FAULT]}...")


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for nothing else)
    kind = "NotFoundError" if error.status_code == 404 else "InputError"
    return _error(error.status_code, kind, str(error.detail))


def run_server(settings: Settings, host: str, port: int, started: Callable[[str], None]) -> None:
    """Serve until interrupted; ``started`` is told the address when requests are accepted.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=2048) as listening:
        bound = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        server = _Server(
            uvicorn.Config(create_app(settings), log_level="warning", access_log=False),
            lambda: started(f"http://{shown}:{bound}"),
        )
        server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """uvicorn that says when it accepts requests."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._told = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._told()

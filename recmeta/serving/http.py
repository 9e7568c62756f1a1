"""The HTTP API: what each operation does with the rooms behind it. It must never score.

Whatever a client sends gives an answer or a typed JSON error (4xx); a 503 says that no bundle can
serve. Every operation is a row of `recmeta.serving.openapi.OPERATIONS` and a method of the same name here.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import polars as pl
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response

from recmeta.bundle.listing import bundles_as_json
from recmeta.bundle.store import BundleStore
from recmeta.contexts import check_context_name
from recmeta.errors import BusyError, InputError, IntegrityError, NotFoundError, RecmetaError, SchemaError
from recmeta.serving import messages as m
from recmeta.serving import metrics as prometheus
from recmeta.serving import overview
from recmeta.serving.answers import Answer
from recmeta.serving.champion import Champion, NoChampionError
from recmeta.serving.event_ids import EventIds
from recmeta.serving.jobs import AlreadyRunningError, Jobs, MediaTypeError
from recmeta.serving.keys import KeyMissingError, Keys, KeyTooWeakError, Role, is_loopback, load_keys
from recmeta.serving.limits import LimitBody, RateLimit, TooLargeError, TooManyRequestsError
from recmeta.serving.live import as_interactions
from recmeta.serving.metrics import Metrics
from recmeta.serving.openapi import OPERATIONS, Operation, document
from recmeta.serving.recommender import Ranking, Recommender
from recmeta.serving.request_log import Line, RequestLog
from recmeta.serving.served_log import ServedLog
from recmeta.serving.shadow import Shadow
from recmeta.serving.together import Together
from recmeta.serving.traces import open_traces
from recmeta.serving.watch import LINE, Watch, watch_stages
from recmeta.settings import Settings, load_settings

LONGEST_FAULT = 300
"""Characters of an error that quotes the client; a megabyte of nonsense is not sent back."""

SWITCH_SECONDS = 1e-4
"""After which a thread that opens a bundle gives way; Python's own 5 ms are the time of several answers."""

CONSOLE = Path(__file__).parent / "console"

_CONSOLE_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

_CONSOLE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the console may load: its own files and this API. No inline script runs, whatever a page shows."""

_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


class ConflictError(RecmetaError):
    """Another bundle was promoted than the one that was expected to serve."""


class StoreError(RecmetaError):
    """The online store, or the disk, refuses what has to be written."""


STATUS: dict[type[RecmetaError], int] = {
    InputError: 400,
    KeyMissingError: 401,
    KeyTooWeakError: 403,
    NotFoundError: 404,
    AlreadyRunningError: 409,
    ConflictError: 409,
    TooLargeError: 413,
    MediaTypeError: 415,
    TooManyRequestsError: 429,
    SchemaError: 503,  # not the client's table: features that do not fit the bundle
    IntegrityError: 503,
    BusyError: 503,
    NoChampionError: 503,
    StoreError: 503,
}

_LOG = logging.getLogger("recmeta.serving")

_Asked = TypeVar("_Asked", bound=msgspec.Struct)
_Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """The operations over one workspace, a method each."""

    def __init__(self, settings: Settings, metrics: Metrics, keys: Keys | None) -> None:
        """Serve the workspace of ``settings``; without ``keys`` this machine may do all."""
        self._settings = settings
        self._limits = settings.serving
        self._metrics = metrics
        self._keys = keys
        self._store = BundleStore(settings.bundles_folder)
        self._traces = open_traces(settings.serving.traces)
        self._ids = EventIds(settings.serving_folder / "event_ids.sqlite", settings.serving.keep_event_ids)
        self.served = ServedLog(settings.served_folder) if settings.serving.exploration else None
        self.champion = Champion(
            settings, swapped=metrics.bundle_swapped, refused=self._refused, served=self.served
        )
        self.shadow = Shadow(settings)
        self._together = Together()
        self._watched: Recommender | None = None
        self.jobs = Jobs(settings.workspace, settings.serving_folder, metrics.job_ended)
        rate = settings.serving.requests_per_second
        self._rate = None if rate is None else RateLimit(rate)
        self.log = RequestLog(
            settings.serving.request_log,
            None if settings.serving.log_salt is None else settings.serving.log_salt.get_secret_value(),
            metrics.log_failed,
        )

    def guarded(self, operation: Operation) -> _Handler:
        """The operation's method, behind the key and the rate that it needs."""
        answer: _Handler = getattr(self, operation.name)
        name, role = operation.name, operation.key

        async def endpoint(request: Request) -> Response:
            _line(request).operation = name
            if role is not None:
                self._admit(request, role)
            return await answer(request)

        return endpoint

    async def close(self) -> None:
        """End what is still running."""
        await self.jobs.stop()
        self._ids.close()
        self.log.close()
        await asyncio.to_thread(self._stop_threads)

    def _stop_threads(self) -> None:
        self.champion.stop()
        self.shadow.stop()
        if self.served is not None:
            self.served.stop()

    # Ranking --------------------------------------------------------------------------------------

    async def rank(self, request: Request) -> Response:
        asked = await _body(request, _RANK)
        ranking = Ranking(asked.context, asked.user_id, asked.item_ids, reasons=asked.reasons)
        return self._ranking(request, await self._together.rank(self._recommender(), ranking))

    async def recommend(self, request: Request) -> Response:
        return self._recommended(request, await _body(request, _RECOMMEND))

    async def recommend_by_query(self, request: Request) -> Response:
        return self._recommended(request, _query(request, m.RecommendRequest))

    def _recommended(self, request: Request, asked: m.RecommendRequest) -> Response:
        answer = self._recommender().recommend(
            asked.context,
            asked.user_id,
            int(asked.n),
            exclude_seen=asked.exclude_seen,
            diversity=asked.diversity,
            freshness=asked.freshness,
        )
        return self._ranking(request, answer)

    def _ranking(self, request: Request, answer: Answer) -> Response:
        self._metrics.answered(
            answer.context, [item.score for item in answer.items[: prometheus.SCORED]], answer.notes
        )
        if self.log.writes:
            line = _line(request)
            line.context, line.bundle, line.degraded = answer.context, answer.bundle, answer.degraded
            line.user = self.log.user(answer.user_id)
        self.shadow.offer(answer)
        return _json(answer)

    async def explain(self, request: Request) -> Response:
        asked = await _body(request, _EXPLAIN)
        return _json(self._recommender().explain(asked.context, asked.user_id, asked.item_id))

    # What there is --------------------------------------------------------------------------------

    async def live(self, request: Request) -> Response:
        return _json(m.Live("ok"))

    async def ready(self, request: Request) -> Response:
        recommender, refused = self._recommender(), self.champion.refused
        if refused is None:
            return _json(m.Ready("ok", recommender.version, recommender.until))
        return _json(m.Ready("degraded", recommender.version, recommender.until, refused))

    async def metrics(self, request: Request) -> Response:
        with suppress(NoChampionError):  # nothing serves, which the age of no bundle tells
            self._metrics.bundle_age(datetime.now(UTC) - self.champion.get().until)
        return Response(self._metrics.exposition(), headers={"content-type": prometheus.CONTENT_TYPE})

    async def user(self, request: Request) -> Response:
        asked = _query(request, m.UserQuery)
        return _json(m.UserReply(asked.user_id, self._recommender().history(asked.user_id)))

    async def contexts(self, request: Request) -> Response:
        recommender = self._recommender()
        return _json(overview.contexts_of(recommender.manifest, recommender.version))

    async def evidence(self, request: Request) -> Response:
        path = self._recommender().evidence
        return Response(b"{}" if path is None else path.read_bytes(), media_type="application/json")

    async def report(self, request: Request) -> Response:
        page = await asyncio.to_thread(overview.latest_report, self._settings.runs_folder)
        return Response(page, media_type="text/html", headers={"content-security-policy": _REPORT_POLICY})

    async def bundles(self, request: Request) -> Response:
        return _json(await asyncio.to_thread(bundles_as_json, self._store))

    # What changes something -----------------------------------------------------------------------

    async def events(self, request: Request) -> Response:
        asked = (await _body(request, _EVENTS)).events
        if len(asked) > self._limits.most_events:
            raise InputError(f"events: expected at most {self._limits.most_events}, found {len(asked)}")
        recommender = self._recommender()
        rows = as_interactions(
            asked, list(recommender.serves), datetime.now(UTC), self._limits.event_clock_ahead
        )
        try:
            async with self._ids.recording(rows["event_id"].to_list()) as new:
                fresh = rows.filter(pl.col("event_id").is_in(new)).unique("event_id", keep="first")
                if len(fresh):
                    recommender.record(fresh)
        except RecmetaError:
            raise
        except Exception as error:  # the clients of the stores share no class of faults
            raise StoreError(f"nothing was recorded, send the events again: {_short(str(error))}") from error
        self._metrics.recorded(len(fresh), len(rows) - len(fresh))
        return _json(m.EventsReply(len(fresh), len(rows) - len(fresh)))

    async def onboard(self, request: Request) -> Response:
        asked = _query(request, m.OnboardQuery)
        check_context_name(asked.context)
        if asked.exposure is not msgspec.UNSET:
            check_context_name(asked.exposure)
        try:
            job = await self.jobs.start(asked, _media_type(request), request.stream())
        except OSError as error:
            raise StoreError(f"the file could not be kept: {error}") from error
        return _json(m.JobStarted(job), status=202)

    async def job(self, request: Request) -> Response:
        return _json(self.jobs.state(request.path_params["job"]))

    async def promote(self, request: Request) -> Response:
        asked = await _body(request, _PROMOTE)
        before = self._store.champion_version()
        expected = (
            before if isinstance(asked.expected_champion, msgspec.UnsetType) else asked.expected_champion
        )
        if before not in (expected, asked.version):
            raise ConflictError(_moved(expected, before))
        plan = overview.open_plan(self._settings.runs_folder, asked.version)
        if plan is not None:
            version = await self.jobs.promote(asked.version)
        else:
            version = asked.version
            try:
                await asyncio.to_thread(self._store.promote, version, expected)
            except BusyError as error:
                now = self._store.champion_version()
                if now != expected:
                    raise ConflictError(_moved(expected, now)) from error
                raise
        await asyncio.to_thread(self.champion.look)
        return _json(m.ChampionMoved(version, before))

    async def rollback(self, request: Request) -> Response:
        asked = await _body(request, _ROLLBACK)
        before = self._store.champion_version()
        version = await asyncio.to_thread(self._store.rollback, asked.to)
        await asyncio.to_thread(self.champion.look)
        return _json(m.ChampionMoved(version, before))

    # Before and beneath ---------------------------------------------------------------------------

    def _recommender(self) -> Recommender:
        recommender = self.champion.get()
        if recommender is not self._watched:
            watch_stages(recommender, self._metrics, self._traces)
            self._watched = recommender
        return recommender

    def _refused(self, version: str, why: str) -> None:
        self._metrics.bundle_refused()
        _LOG.error("bundle %s was promoted and is refused, the one before goes on: %s", version, why)

    def _admit(self, request: Request, needed: Role) -> None:
        """Let a request in.

        Raises:
            KeyMissingError, KeyTooWeakError: it may not do this.
            TooManyRequestsError: it may, later.
        """
        client = "" if request.client is None else request.client.host
        if self._keys is None:
            # A page from elsewhere can be made to resolve to this machine; its browser then names its host.
            host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
            if not is_loopback(host.strip("[]")):
                raise KeyTooWeakError(
                    f"host: expected this machine's, as there are no keys; found {_short(host)!r}"
                )
            held: Role | None = "admin"
        else:
            held = self._keys.role_of(request.headers.get("authorization", "").encode("latin-1"))
        if self._rate is not None:
            self._rate.take((held, client))
        if held is None:
            raise KeyMissingError("expected `Authorization: Bearer KEY` with a key from keys.json")
        if needed == "admin" and held != "admin":
            raise KeyTooWeakError("expected the admin key, found the read key")


_RANK = msgspec.json.Decoder(m.RankRequest)
_RECOMMEND = msgspec.json.Decoder(m.RecommendRequest)
_EXPLAIN = msgspec.json.Decoder(m.ExplainRequest)
_EVENTS = msgspec.json.Decoder(m.EventsRequest)
_PROMOTE = msgspec.json.Decoder(m.PromoteRequest)
_ROLLBACK = msgspec.json.Decoder(m.RollbackRequest)


def create_app(settings: Settings, *, freeze: bool = False) -> FastAPI:
    """Build the application over the workspace of ``settings``.

    ``freeze`` takes what was loaded at the start out of the garbage collector's rounds, which are most of
    the slowest answers, and lets threads take turns more often; it is for a process that does nothing else.

    Raises:
        InputError: keys.json, or a setting, cannot be used.
        OSError: keys.json cannot be made.
    """
    metrics = Metrics()
    api = Api(settings, metrics, load_keys(settings) if settings.serving.keys else None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        api.champion.start()
        api.shadow.start()
        if freeze:
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 20)  # an answer makes hundreds of objects, and no cycles
            sys.setswitchinterval(SWITCH_SECONDS)
        yield
        await api.close()

    # /openapi.json is made of the messages' types; FastAPI's pages load scripts from elsewhere.
    app = FastAPI(title="recmeta", openapi_url=None, lifespan=lifespan)
    for operation in OPERATIONS:
        # Plain routes: the operations read and check the request themselves, at a fraction of the cost.
        app.add_route(
            operation.path, api.guarded(operation), methods=[operation.method], include_in_schema=False
        )
    told = msgspec.json.encode(document(settings.serving))

    async def openapi(request: Request) -> Response:
        return Response(told, media_type="application/json")

    app.add_route("/openapi.json", openapi, include_in_schema=False)
    app.add_route("/", _console_file, include_in_schema=False)
    app.add_route("/console/{file}", _console_file, include_in_schema=False)
    app.add_middleware(
        LimitBody,
        limit=settings.serving.largest_body,
        larger={"/v1/onboard": settings.serving.largest_upload},
    )
    app.add_middleware(Watch, metrics=metrics, log=api.log, traces=open_traces(settings.serving.traces))
    app.add_exception_handler(RecmetaError, _on_recmeta_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_unforeseen)
    return app


def app_from_environment() -> FastAPI:
    """Build the application of a worker process, over ``RECMETA_WORKSPACE``."""
    return create_app(load_settings(os.environ["RECMETA_WORKSPACE"]), freeze=True)


async def _body(request: Request, decoder: msgspec.json.Decoder[_Asked]) -> _Asked:
    """The JSON body of a request.

    Raises:
        InputError: it is no JSON, or not of the expected form.
        MediaTypeError: it does not say that it is JSON.
    """
    if _media_type(request) != "application/json":
        raise MediaTypeError(
            f"content-type: expected application/json, found {_short(_media_type(request))!r}"
        )
    try:
        return decoder.decode(await request.body())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"body: {_short(str(error))}") from error


def _query(request: Request, kind: type[_Asked]) -> _Asked:
    try:
        return msgspec.convert(dict(request.query_params), kind, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(f"query: {_short(str(error))}") from error


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _line(request: Request) -> Line:
    line: Line = request.scope[LINE]
    return line


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_FAULT else f"{text[:LONGEST_FAULT]}..."


def _moved(expected: str | None, found: str | None) -> str:
    return f"expected {expected or 'nothing'} to serve, found {found or 'nothing'}, promoted meanwhile"


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


async def _console_file(request: Request) -> Response:
    """A file of the console. Only what lies in its folder is looked for, and never by a path."""
    name = request.path_params.get("file", "index.html")
    _line(request).operation = "console"
    path = next((found for found in CONSOLE.glob("*") if found.name == name), None)
    if path is None or path.suffix not in _CONSOLE_TYPES:
        raise NotFoundError(f"no such page: {_short(request.url.path)}")
    page = path.suffix == ".html"
    headers = {
        "cache-control": "no-store" if page else "no-cache",
        "content-security-policy": _CONSOLE_POLICY,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return FileResponse(path, media_type=_CONSOLE_TYPES[path.suffix], headers=headers)


def _error(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json(m.ErrorReply(m.Fault(kind, message)), status, headers)


async def _on_recmeta_error(request: Request, error: Exception) -> Response:
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    headers = {}
    if isinstance(error, KeyMissingError):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, TooManyRequestsError):
        headers["retry-after"] = str(error.retry_after)
    return _error(status, type(error).__name__, str(error), headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for nothing else)
    kind = "NotFoundError" if error.status_code == 404 else "InputError"
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:  # the router tells those of the first route alone
        headers["allow"] = ", ".join(_methods(request.url.path)) or headers["allow"]
    return _error(error.status_code, kind, str(error.detail), headers)


def _methods(path: str) -> list[str]:
    return sorted({operation.method for operation in OPERATIONS if operation.path == path})


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return _error(400, "InputError", "body: the client left before its end")  # nobody reads this


async def _on_unforeseen(request: Request, error: Exception) -> Response:
    return _error(500, "InternalError", "a fault of the server's own; its log says more")

"""Watches each request from outside: its time, its outcome, its line in the log, its span.

It wraps the whole application, so that what is refused or goes wrong is counted like what is answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recmeta.serving.metrics import Metrics
from recmeta.serving.recommender import Recommender
from recmeta.serving.request_log import Line, RequestLog, begin_line
from recmeta.serving.traces import Traces

LINE = "recmeta.line"
"""Where in a scope the answering operation finds the `Line` that it may add to."""


class Watch:
    """ASGI middleware: tells metrics, the log and traces of each request."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: RequestLog, traces: Traces) -> None:
        """Wrap ``app``."""
        self.app = app
        self._metrics = metrics
        self._log = log
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        line: Line = begin_line()
        scope[LINE] = line
        began = time.perf_counter()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                line.status = message["status"]
            await send(message)

        self._metrics.began()
        try:
            with self._traces.span("request") as span:
                await self.app(scope, receive, noting)
                if span is not None:
                    span.update_name(line.operation)
                    span.set_attribute("http.response.status_code", line.status)
        except Exception:
            line.status = 500
            raise
        finally:
            seconds = time.perf_counter() - began
            self._metrics.ended(line.operation, line.status, seconds)
            line.milliseconds = round(seconds * 1000, 3)
            self._log.write(line)


def watch_stages(recommender: Recommender, metrics: Metrics, traces: Traces) -> None:
    """Time what a recommender reads and scores, and count the adapters it loads, from now on."""
    scorer = recommender._scorer
    metrics.adapters(scorer.adapters_in_memory)
    scorer.adapter_loaded = lambda: metrics.adapters(scorer.adapters_in_memory, 1)
    for stage, owner, name in (
        ("read", recommender._guarded, "requests"),
        ("score", recommender._scorer, "score_kept"),
    ):
        setattr(owner, name, _timed(stage, getattr(owner, name), metrics, traces))


def _timed(stage: str, work: Callable[..., Any], metrics: Metrics, traces: Traces) -> Callable[..., Any]:
    def timed(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        with traces.span(stage):
            done = work(*given, **named)
        metrics.stage(stage, time.perf_counter() - began)
        return done

    return timed

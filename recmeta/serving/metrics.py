"""What a server counts, as Prometheus reads it. It must never change what is answered.

Labels are bounded whatever clients send: operations are those of the API, contexts those of the bundle.
Several workers add up in the folder that `FOLDER` names in their environment, as `recmeta serve` sees to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER = "RECMETA_METRICS_FOLDER"
"""Environment variable: where workers add up. ``PROMETHEUS_MULTIPROC_DIR`` then names the same folder."""

if FOLDER not in os.environ:
    # Feast, where it is imported, sets that other variable for itself, and would make these numbers files.
    values.ValueClass = values.MutexValue
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.008,
    0.012,
    0.02,
    0.035,
    0.06,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)
"""Upper bounds of latencies: fine around the milliseconds that an answer takes, coarse where something is
wrong."""

STAGES = ("read", "score")

SCORES = (0.001, 0.003, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Upper bounds of scores, which are probabilities and mostly small."""

SCORED = 3
"""Items of an answer, from the top, whose scores are counted: what people see, and no cost that grows."""

MOST_REASONS = 50
"""Of reduced answers; later ones are counted together, as a label must not grow with time."""


MOST_CONTEXTS = 256
"""Whose scores are counted apart, those that were asked for first; others are counted together. A context
has some twenty time series, of 7 kB."""

OTHER_CONTEXTS = "(other)"
"""No context can be called so."""


class Metrics:
    """The numbers of one application."""

    def __init__(self) -> None:
        """Start all at zero."""
        self._registry = CollectorRegistry()
        registry = self._registry
        self._latency = Histogram(
            "recmeta_request_seconds", "From the first byte in to the last byte out.",
            ("operation", "status"), buckets=SECONDS, registry=registry,
        )  # fmt: skip
        stages = Histogram(
            "recmeta_stage_seconds", "Parts of an answer: reading the online store, scoring.",
            ("stage",), buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._stages = {name: stages.labels(name) for name in STAGES}
        self._in_flight = Gauge(
            "recmeta_requests_in_flight", "Requests that are being answered.",
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self._degraded = Counter(
            "recmeta_degraded_answers", "Answers that are less than they should be, by why.",
            ("reason",), registry=registry,
        )  # fmt: skip
        self._scores = Histogram(
            "recmeta_score", f"Scores of the first {SCORED} items of each answer.",
            ("context",), buckets=SCORES, registry=registry,
        )  # fmt: skip
        self._bundle = Gauge(
            "recmeta_bundle_info", "1 for the bundle that serves.",
            ("version",), multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
        self._age = Gauge(
            "recmeta_bundle_age_seconds", "Since the end of the data that the bundle in force has seen.",
            multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self._reloads = Counter(
            "recmeta_bundle_reloads", "Bundles that took over from another.", registry=registry
        )
        self._refused = Counter(
            "recmeta_bundles_refused", "Promoted bundles that could not be opened; the one before stayed.",
            registry=registry,
        )  # fmt: skip
        self._events = Counter(
            "recmeta_events", "Live interactions that were sent in: recorded, or repeated.",
            ("outcome",), registry=registry,
        )  # fmt: skip
        self._adapters = Gauge(
            "recmeta_adapters_in_memory", "Adapters that need not be loaded when they are asked for.",
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self._adapter_loads = Counter(
            "recmeta_adapter_loads", "Adapters that a request had to wait for.", registry=registry
        )
        self._unlogged = Counter(
            "recmeta_request_log_failures", "Requests whose line could not be written.", registry=registry
        )
        self._jobs = Counter("recmeta_jobs", "Onboardings that ended, by how.", ("state",), registry=registry)
        for state in ("done", "failed"):  # a rate needs a zero to start from
            self._jobs.labels(state)
        self.recorded(0, 0)
        self._version: str | None = None
        self._reasons: dict[str, Any] = {}
        self._by_request: dict[tuple[str, int], Histogram] = {}
        self._by_context: dict[str, Histogram] = {}

    def began(self) -> None:
        """A request came in."""
        self._in_flight.inc()

    def ended(self, operation: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._in_flight.dec()
        key = (operation, status // 100)
        child = self._by_request.get(key)
        if child is None:
            child = self._by_request[key] = self._latency.labels(operation, f"{status // 100}xx")
        child.observe(seconds)

    def answered(self, context: str, scores: Sequence[float], notes: Iterable[str]) -> None:
        """A ranking was made. ``scores`` are those of its first items; ``notes`` say why it is less."""
        child = self._by_context.get(context)
        if child is None:
            label = context if len(self._by_context) < MOST_CONTEXTS else OTHER_CONTEXTS
            child = self._by_context[context] = self._scores.labels(label)
        for score in scores:
            child.observe(score)
        for note in notes:
            self._reason(note).inc()

    def stage(self, name: str, seconds: float) -> None:
        """A part of an answer was done: read, or score."""
        self._stages[name].observe(seconds)

    def adapters(self, kept: int, loaded: int = 0) -> None:
        """``kept`` adapters are in memory, of which ``loaded`` were loaded for a request just now."""
        self._adapters.set(kept)
        self._adapter_loads.inc(loaded)

    def bundle_swapped(self, version: str) -> None:
        """Another bundle serves from now on, or a first one."""
        if self._version is not None:
            self._reloads.inc()
            self._bundle.labels(self._version).set(0)
        self._version = version
        self._bundle.labels(version).set(1)

    def bundle_refused(self) -> None:
        """A promoted bundle could not be opened."""
        self._refused.inc()

    def bundle_age(self, age: timedelta) -> None:
        """How long ago the data of the bundle in force ends."""
        self._age.set(age.total_seconds())

    def recorded(self, recorded: int, repeated: int) -> None:
        """Live interactions came in."""
        self._events.labels("recorded").inc(recorded)
        self._events.labels("repeated").inc(repeated)

    def job_ended(self, state: str) -> None:
        """An onboarding is done or has failed."""
        self._jobs.labels(state).inc()

    def log_failed(self) -> None:
        """The line of a request is lost."""
        self._unlogged.inc()

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format; of all workers, where there are several."""
        if FOLDER not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, os.environ[FOLDER])  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _reason(self, note: str) -> Any:
        # Notes are sentences for people; dates and names in them must not each become a time series.
        name = re.split(r"[;:,]|\d", note, maxsplit=1)[0].strip()[:80] or "other"
        if name not in self._reasons:
            name = name if len(self._reasons) < MOST_REASONS else "other"
            self._reasons[name] = self._degraded.labels(name)
        return self._reasons[name]

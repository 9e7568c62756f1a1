"""Spans for OpenTelemetry, where the settings ask for them. Where they do not, nothing of it is imported.

Where spans go is OpenTelemetry's own business: to the provider that is set, else over OTLP to the address
in its environment variables (``OTEL_EXPORTER_OTLP_ENDPOINT``). This module must never know an operation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from recmeta.errors import InputError


class Traces(Protocol):
    """Something that times named stretches of work."""

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Time what is done within."""


class NoTraces:
    """Times nothing."""

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Do nothing."""
        return nullcontext()


class _OpenTelemetry:
    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    def span(self, name: str) -> AbstractContextManager[Any]:
        found: AbstractContextManager[Any] = self._tracer.start_as_current_span(name)
        return found


def open_traces(wanted: bool) -> Traces:
    """Return what makes spans, or, where they are not ``wanted``, what makes none.

    Raises:
        InputError: they are wanted, and OpenTelemetry is not installed.
    """
    if not wanted:
        return NoTraces()
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InputError(
            f'serving.traces: expected the extra "traces" (pip install "recmeta[traces]"), found {error}'
        ) from error
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        provider = TracerProvider(resource=Resource.create({"service.name": "recmeta"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
    return _OpenTelemetry(trace.get_tracer("recmeta.serving"))

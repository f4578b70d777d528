"""OpenTelemetry traces: a request becomes one span, made when it is over, from what its record says.

So a request pays nothing for it while it runs. Knows no endpoint; opentelemetry (the extra `[tracing]`) is imported
only where traces are asked for, and none of its global state is touched.
"""

from __future__ import annotations

from typing import Any

from higgs_server.telemetry import RequestRecord

_NANOSECONDS = 1_000_000_000
_SEND_SECONDS = 3.0
"""For a batch, retries included: an end of the server waits that long for a collector that does not answer."""


class Tracing:
    """Sends spans to a collector from a thread of its own, in batches. `observe` is an observer of requests."""

    def __init__(self, endpoint: str, version: str) -> None:
        """`endpoint`: a collector's address for OTLP over HTTP, such as http://localhost:4318. `version`: ours."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "higgs-audio-server", "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_SEND_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("higgs_server", version)
        self._context = TraceContextTextMapPropagator()

    def observe(self, record: RequestRecord) -> None:
        """The span of a request that is over, within the client's trace if it sent a `traceparent`."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        started = record.clock.started
        span = self._tracer.start_span(
            f"{record.method} {record.endpoint}",
            context=self._context.extract(record.trace),
            kind=SpanKind.SERVER,
            attributes=_attributes(record),
            start_time=started,
        )
        if record.first_audio is not None:
            span.add_event("first audio", timestamp=started + int(record.first_audio * _NANOSECONDS))
        if record.error is not None and record.error.status >= 500:
            span.set_status(Status(StatusCode.ERROR, record.error.code))
        span.end(started + int(record.total * _NANOSECONDS))

    def close(self) -> None:
        """Sends what waits, and ends the thread."""
        self._provider.shutdown()


def _attributes(record: RequestRecord) -> dict[str, Any]:
    """Names of OpenTelemetry's conventions where there are some; seconds."""
    found = {
        "http.request.method": record.method,
        "http.route": record.endpoint,
        "http.response.status_code": record.status,
        "higgs.request_id": record.id,
        "higgs.outcome": record.outcome,
        "higgs.queued": record.queued,
        "higgs.first_audio": record.first_audio,
        "higgs.audio_seconds": record.audio_seconds or None,
        "higgs.real_time_factor": record.real_time_factor,
        "higgs.finish_reason": record.finish_reason,
    }
    return {name: value for name, value in found.items() if value is not None}

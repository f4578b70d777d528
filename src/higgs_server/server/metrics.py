"""What Prometheus reads at `/metrics`: counts of finished requests, and the state of queue, engine and process.

Knows how numbers are named and exported, and nothing of how they come about. Each application has a registry of its
own. Every label has few values, whatever clients send.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from higgs_server import __version__
from higgs_server.engine.interface import BackendStats
from higgs_server.server.model import ServedModel
from higgs_server.telemetry import RequestRecord, Tally
from higgs_server.types import SpeechError

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
_FACTORS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0)


class Metrics:
    """The numbers of one application. `observe` is an observer of requests (telemetry.py)."""

    def __init__(self, model: ServedModel) -> None:
        registry = self._registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"higgs_{name}", help, labels, registry=registry)

        def histogram(name: str, help: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"higgs_{name}", help, labels, buckets=buckets, registry=registry)

        self._requests = counter(
            "requests",
            "Requests by route, HTTP status (closed: nobody was there to read one) and outcome: ok, cancelled, or an "
            "error's code. A WebSocket session counts as 101, each of its sentences besides.",
            "endpoint",
            "status",
            "outcome",
        )
        self._seconds = histogram(
            "request_seconds", "From a request's arrival to its end, sessions left out.", "endpoint"
        )
        self._first_audio = histogram(
            "first_audio_seconds", "From a request's arrival to its first sound, queue included.", "endpoint"
        )
        self._queued = histogram("queue_wait_seconds", "What a request waited for its turn.")
        self._factors = histogram(
            "real_time_factor",
            "Seconds of generating for a second of sound, without queue and slow readers.",
            buckets=_FACTORS,
        )
        self._audio = counter("audio_seconds", "Seconds of sound made.")
        self._finished = counter("finish_reasons", "Utterances by why they ended: stop, length or guard.", "reason")
        self._rejects = counter("rejects", "Requests refused before any sound, by the error's code.", "reason")
        self._cancels = counter("cancels", "Requests whose client did not wait for the end.")
        registry.register(_State(model))
        ProcessCollector(registry=registry)

    def observe(self, record: RequestRecord) -> None:
        """Counts a request that is over."""
        status = "closed" if record.status is None else str(record.status)
        self._requests.labels(record.endpoint, status, record.outcome).inc()
        if record.method != "WEBSOCKET":
            self._seconds.labels(record.endpoint).observe(record.total)
        if record.first_audio is not None:
            self._first_audio.labels(record.endpoint).observe(record.first_audio)
        if record.queued is not None:
            self._queued.observe(record.queued)
        if (factor := record.real_time_factor) is not None:
            self._factors.observe(factor)
        self._audio.inc(record.audio_seconds)
        if record.finish_reason is not None:
            self._finished.labels(record.finish_reason).inc()
        if record.outcome == "cancelled":
            self._cancels.inc()
        if record.error is not None and record.first_audio is None and record.error.status != SpeechError.status:
            self._rejects.labels(record.error.code).inc()

    def export(self, accept: str) -> tuple[bytes, str]:
        """All of them as text, and its content type: OpenMetrics where `accept` asks for it, else Prometheus's own."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _State(Collector):
    """What is true at the moment of a scrape. A family that does not apply has no sample."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def collect(self) -> Iterator[Metric]:
        """prometheus_client's interface."""
        loaded = self._model.synthesizer
        yield _gauge("ready", "1 once a model can speak.", float(self._model.state.status == "ready"))
        info = GaugeMetricFamily(
            "higgs_model_info", "The loaded model.", labels=["model", "device", "dtype", "version"]
        )
        if loaded is not None:
            about = loaded.backend.info
            info.add_metric([about.name, about.device, about.dtype, __version__], 1.0)
        yield info
        queue = self._model.admission.state
        yield _gauge("requests_running", "Utterances whose turn it is.", queue.running)
        yield _gauge("requests_running_limit", "Utterances that may have their turn at once.", queue.max_running)
        yield _gauge("requests_waiting", "Utterances that wait for their turn.", queue.waiting)
        yield _gauge("requests_waiting_limit", "Utterances that may wait.", queue.max_waiting)
        yield from _backend(loaded.backend.stats() if loaded else None)


def _backend(stats: BackendStats | None) -> Iterator[Metric]:
    engine = stats.engine if stats else None
    yield _gauge("slots", "Utterances that can be generated at the same time.", engine and engine.slots)
    yield _gauge("slots_used", "Utterances that are being generated.", engine and engine.running)
    yield _gauge("slots_waiting", "Utterances that wait for a slot.", engine and engine.waiting)
    yield _counter("frames", "Codec frames drawn, 25 a second of sound.", engine and engine.rows)
    yield _histogram(
        "decode_step_seconds",
        "A step of all running utterances, the prompt pieces in between included; up to 0.04 is faster than speech.",
        engine and engine.step_seconds,
    )
    yield _histogram("decode_batch_size", "Utterances in a decode step.", engine and engine.batches)
    yield _counter("prefix_cache_hits", "Prompts whose beginning was kept.", engine and engine.prefix_hits)
    yield _counter(
        "prefix_cache_misses", "Prompts whose beginning had to be computed.", engine and engine.prefix_misses
    )
    yield _gauge("prefix_cache_entries", "Beginnings of prompts that are kept.", engine and engine.prefixes)
    yield _gauge("prefix_cache_bytes", "Their memory.", engine and engine.prefix_bytes)
    yield _counter("clip_cache_hits", "Reference clips that were encoded already.", stats and stats.clip_hits)
    yield _counter("clip_cache_misses", "Reference clips that had to be encoded.", stats and stats.clip_misses)
    yield _gauge("gpu_memory_bytes", "GPU memory that the process holds.", stats and stats.gpu_bytes)


def _gauge(name: str, help: str, value: float | None) -> Metric:
    return GaugeMetricFamily(f"higgs_{name}", help, value=value)


def _counter(name: str, help: str, value: float | None) -> Metric:
    return CounterMetricFamily(f"higgs_{name}", help, value=value)


def _histogram(name: str, help: str, tally: Tally | None) -> Metric:
    if tally is None:
        return HistogramMetricFamily(f"higgs_{name}", help)
    bounds = [*(str(float(bound)) for bound in tally.bounds), "+Inf"]
    # Its writer does not wait: the sum may be a value ahead of the counts.
    buckets: list[Any] = list(zip(bounds, accumulate(tally.counts), strict=True))
    return HistogramMetricFamily(f"higgs_{name}", help, buckets=buckets, sum_value=tally.sum)

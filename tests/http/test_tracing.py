"""Traces as a collector receives them: one span a request, in the client's trace, with what its record says."""

from __future__ import annotations

import gzip
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from higgs_server.settings import BadSettings, Settings
from server_process import ServerProcess

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def collector(spans: queue.Queue[Span]) -> Iterator[str]:
    """Takes OTLP over HTTP; gives its address."""

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                named = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
                assert named["service.name"] == "higgs-audio-server"
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        spans.put(span)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def attributes(span: Span) -> dict[str, object]:
    return {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}


def test_a_request_is_a_span_in_the_clients_trace() -> None:
    spans: queue.Queue[Span] = queue.Queue()
    with collector(spans) as address:
        with ServerProcess(["--model-path", "embedded", "--otlp-endpoint", address]) as server:
            server.wait_ready()
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "traced"}
            answer = httpx.post(f"{server.url}/generate", json={"text": "Hello."}, headers=headers, timeout=60).json()
            httpx.post(f"{server.url}/generate", json={"text": "Hello.", "ref_audio": "nobody"})
        # What waited was sent before the process ended.
        assert server.process.returncode == 0
        spoken, refused = (spans.get(timeout=20) for _ in range(2))
    assert (spoken.trace_id.hex(), spoken.parent_span_id.hex()) == (TRACE, PARENT)
    assert (spoken.name, spoken.kind) == ("POST /generate", Span.SPAN_KIND_SERVER)
    said = attributes(spoken)
    assert said["http.response.status_code"] == 200
    assert (said["http.route"], said["higgs.request_id"], said["higgs.outcome"]) == ("/generate", "traced", "ok")
    assert said["higgs.audio_seconds"] == pytest.approx(answer["duration"])
    (first,) = spoken.events
    assert spoken.start_time_unix_nano < first.time_unix_nano <= spoken.end_time_unix_nano
    assert refused.trace_id.hex() != TRACE
    assert attributes(refused)["higgs.outcome"] == "not_found"
    assert not refused.status.code


def test_a_collector_that_is_not_there_holds_nothing_up() -> None:
    with ServerProcess(["--model-path", "embedded", "--otlp-endpoint", "http://127.0.0.1:9"]) as server:
        server.wait_ready()
        assert httpx.post(f"{server.url}/generate", json={"text": "Hello."}, timeout=60).status_code == 200
        assert server.stop() == 0
    assert "Traceback" not in server.log


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("higgs_server.settings.find_spec", lambda name: None)
    assert Settings().otlp_endpoint is None
    with pytest.raises(BadSettings, match=r"--otlp-endpoint.*higgs-audio-server\[tracing\]"):
        Settings(otlp_endpoint="http://localhost:4318")

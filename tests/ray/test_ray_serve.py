"""The server on Ray Serve: two replicas on two nodes answer as one server does, come and go, and lose nothing."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from answers import events, generated_samples, streamed_samples
from conversing import connected, receive_until, send
from make_tiny_checkpoint import make_tiny_checkpoint
from metrics_of import idle_metrics, metrics_of
from ray_cluster import RayCluster

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
BASE: dict[str, Any] = {"text": "Hello there, this is a test.", "seed": 5, "max_new_tokens": 40}
LONG: dict[str, Any] = {
    **BASE,
    "text": "Hello there. " * 10,
    "max_new_tokens": 400,
    "temperature": 1.9,
}
PIECES: dict[str, Any] = {"text": "Hello there. " * 100, "chunk_method": "word", "chunk_max_word_num": 2}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("model"), seed=4)
    with RayCluster(2, f"model_path={folder}") as it:
        yield it


@pytest.fixture
def client(cluster: RayCluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.url, timeout=120) as it:
        yield it


def generate(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = client.post("/generate", json=BASE | fields).raise_for_status().json()
    return answer


def metric(client: httpx.Client, name: str) -> dict[str, float]:
    """Values by replica, summed over other labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").raise_for_status().text):
        for sample in family.samples:
            if sample.name == name:
                found[sample.labels["replica"]] = found.get(sample.labels["replica"], 0) + sample.value
    return found


class Load:
    """Clients that ask one request after another until they are told to stop. `retry`: once more after a failure."""

    def __init__(self, url: str, clients: int = 4, *, retry: bool) -> None:
        self._url, self._retry = url, retry
        self._stop = threading.Event()
        self.answers = 0
        self.lost: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait_for_answers(4)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_answers(self, more: int) -> None:
        goal = self.answers + more
        deadline = time.monotonic() + 120
        while self.answers < goal:
            assert time.monotonic() < deadline, self.lost
            time.sleep(0.02)

    def _ask(self) -> None:
        while not self._stop.is_set():
            problem = self._one()
            if problem and self._retry:
                problem = self._one()
            if problem:
                self.lost.append(problem)
            else:
                self.answers += 1

    def _one(self) -> str | None:
        """None for a whole stream, else what was wrong with it."""
        try:
            with httpx.stream("POST", f"{self._url}/generate-stream", json=LONG, timeout=120) as answer:
                last = [event["type"] for event in events(answer.iter_lines())][-2:]
                return None if last == ["done", "[DONE]"] else f"{answer.status_code} {last}"
        except httpx.HTTPError as error:
            return repr(error)


def test_an_application_is_made_before_there_is_a_cluster() -> None:
    """As `serve run higgs_server.deploy.ray_serve:app model_path=embedded` does it, arguments as text."""
    program = """
from higgs_server.deploy import ray_serve
from higgs_server.settings import BadSettings, Settings

assert ray_serve.app({"model_path": "embedded", "max_running": "8"})
known = ray_serve.complete(Settings(model_path="embedded"))
assert known.max_running == ray_serve.SLOTS_CPU < ray_serve.deployment(known).max_ongoing_requests
try:
    ray_serve.app({"max_running": "many"})
except BadSettings as error:
    print(error)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert "max_running" in result.stdout


def test_whole_and_streamed_answers_are_the_same_on_every_replica(client: httpx.Client) -> None:
    whole = generate(client)
    for _ in range(4):
        assert generate(client)["audio_base64"] == whole["audio_base64"]
    with client.stream("POST", "/generate-stream", json=BASE) as answer:
        assert np.array_equal(streamed_samples(events(answer.iter_lines())), generated_samples(whole))
    body = {"input": BASE["text"], "seed": 5, "max_new_tokens": 40, "response_format": "pcm"}
    sound = client.post("/v1/audio/speech", json=body).raise_for_status()
    assert np.array_equal(np.frombuffer(sound.content, "<i2"), generated_samples(whole))


def test_a_clip_arrives_and_errors_leave_as_ever(client: httpx.Client) -> None:
    clip = (ROOT / "examples/voice_prompts/belinda.wav").read_bytes()
    form = {"text": BASE["text"], "seed": "5", "max_new_tokens": "40"}
    answer = client.post("/generate-upload", data=form, files={"ref_audio_file": ("clip.wav", clip)})
    assert len(generated_samples(answer.raise_for_status().json()))
    wrong = client.post("/generate", json={**BASE, "ref_audio": "nobody"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "not_found")
    wrong = client.post("/generate", content=b"{", headers={"content-type": "application/json"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "malformed_body")
    assert client.get("/info", headers={"x-request-id": "mine-1"}).headers.get_list("x-request-id") == ["mine-1"]


def test_sound_passes_the_proxy_while_it_is_made(client: httpx.Client, cluster: RayCluster) -> None:
    with client.stream("POST", "/generate-stream", json=LONG | PIECES) as answer:
        found = events(answer.iter_lines())
        assert next(event for event in found if event["type"] == "audio")
        # Its first sound is here while there is more to be made.
        assert sum(metric(client, "higgs_requests_running").values()) == 1
        assert next(event for event in found if event["type"] == "progress")["chunk"] < 50

    with connected(cluster.url) as socket:
        send(socket, "session.config", response_format="pcm", seed=5, max_new_tokens=100)
        send(socket, "input.text", text="The first sentence. The sec")
        while not isinstance(socket.recv(timeout=60), bytes):
            pass
        # Sound of the first sentence is here before the second one is written.
        send(socket, "input.text", text="ond one.")
        send(socket, "input.done")
        rest = receive_until(socket, "session.done")
    kinds = [message["type"] for message in rest if not isinstance(message, bytes)]
    assert kinds == ["audio.done", "audio.start", "audio.done", "session.done"]


def test_metrics_are_each_replicas_own(client: httpx.Client) -> None:
    for _ in range(6):
        generate(client)
    assert list(metric(client, "higgs_ready").values()) == [1.0, 1.0]
    assert sum(metric(client, "higgs_requests_total").values()) >= 6


def test_who_goes_away_frees_the_slot_and_is_no_error(client: httpx.Client, cluster: RayCluster) -> None:
    def streams(outcome: str) -> float:
        return metrics_of(cluster.url)("higgs_requests_total", endpoint="/generate-stream", outcome=outcome)

    leaving = 16  # each another race between the end of the connection and that of the request
    cancelled = streams("cancelled") + leaving
    for _ in range(leaving):
        with client.stream("POST", "/generate-stream", json=LONG | PIECES) as answer:
            next(answer.iter_lines())
    deadline = time.monotonic() + 60
    while streams("cancelled") < cancelled:
        assert time.monotonic() < deadline, f"{streams('internal_error')} called an error"
    idle_metrics(cluster.url)


def test_replicas_that_end_and_begin_under_load_cost_no_answer(cluster: RayCluster) -> None:
    with Load(cluster.url, retry=False) as load:
        cluster.command("replicas 1")
        load.wait_for_answers(8)
        cluster.command("replicas 2")
        load.wait_for_answers(8)
    assert load.lost == []


def test_a_replica_that_is_killed_costs_clients_that_retry_nothing(cluster: RayCluster, client: httpx.Client) -> None:
    with Load(cluster.url, retry=True) as load:
        cluster.command("kill-replica")
        load.wait_for_answers(16)
    assert load.lost == []
    cluster.command("replicas 2")
    assert len(metric(client, "higgs_ready")) == 2


def test_a_batch_on_the_cluster_speaks_what_the_server_would(
    cluster: RayCluster, client: httpx.Client, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    requests = {f"line {n}": {**BASE, "text": f"This is number {n}.", "seed": n} for n in range(40)}
    lines = [json.dumps({"id": name, **fields}) for name, fields in requests.items()]
    source.write_text("\n".join([*lines, "nonsense"]))
    command = [sys.executable, "-m", "higgs_server.cli", "batch", str(source), "--out", str(out)]
    command += ["--model-path", cluster.settings["model_path"], "--ray", cluster.address]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "RAY_AUTH_MODE": "disabled"}
    for spoken in ("40 spoken", "0 spoken (0 cut short), 40 finished before"):
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert result.returncode == 3, result.stderr
        assert spoken in result.stdout
        assert "line 41: not valid JSON" in result.stderr
    for name in ("line 0", "line 17", "line 39"):
        answer = client.post("/generate", json=requests[name]).raise_for_status().json()
        assert base64.b64decode(answer["audio_base64"]) == (out / f"{name}.wav").read_bytes()


@pytest.mark.soak
def test_a_node_that_is_lost_costs_clients_that_retry_nothing(cluster: RayCluster) -> None:
    """The last test of the module: the node stays away, and its replica finds no other."""
    with Load(cluster.url, retry=True) as load:
        cluster.command("kill-node")
        load.wait_for_answers(30)
    assert load.lost == []

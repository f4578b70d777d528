"""Two servers, one library: what is kept, replaced or removed through one counts for the other at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from server_process import ROOT, ServerProcess

BASE: dict[str, Any] = {"text": "Hello there, this is a test.", "seed": 5, "max_new_tokens": 40}
CLIPS = {name: (ROOT / f"examples/voice_prompts/{name}.wav").read_bytes() for name in ("belinda", "chadwick")}


class ShelfServer(ServerProcess):
    """A server that knows `shelf://` (tests/shelf.py)."""

    script = ROOT / "tests/shelf_server.py"


@pytest.fixture(scope="module", params=["file", "shelf"])
def pair(
    request: pytest.FixtureRequest, native_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[httpx.Client]]:
    url = f"{request.param}://{tmp_path_factory.mktemp('library')}/voices"
    arguments = [*native_server.arguments, "--voice-prompts-dir", url]
    with ShelfServer(arguments) as one, ShelfServer(arguments) as other:
        clients = [httpx.Client(base_url=server.url, timeout=120) for server in (one, other)]
        for server in (one, other):
            server.wait_ready()
        yield clients
        for client in clients:
            client.close()


def keep(client: httpx.Client, name: str, clip: str, query: str = "") -> httpx.Response:
    files = {"audio_sample": ("clip.wav", CLIPS[clip])}
    return client.post(f"/v1/audio/voices{query}", data={"name": name, "ref_text": "What it says."}, files=files)


def speak(client: httpx.Client, name: str) -> str:
    answer = client.post("/generate", json={**BASE, "ref_audio": name}).raise_for_status().json()
    sound: str = answer["audio_base64"]
    return sound


def test_what_one_keeps_the_other_speaks_with(pair: list[httpx.Client]) -> None:
    one, other = pair
    assert keep(one, "narrator", "belinda").status_code == 201
    assert [voice["name"] for voice in other.get("/voices").json()["voices"]] == ["narrator"]
    first = speak(other, "narrator")
    assert speak(one, "narrator") == first
    assert keep(other, "narrator", "chadwick").status_code == 409
    assert keep(other, "narrator", "chadwick", "?replace=true").status_code == 201
    assert speak(one, "narrator") == speak(other, "narrator") != first
    assert other.delete("/v1/audio/voices/narrator").status_code == 200
    for client in pair:
        assert client.post("/generate", json={**BASE, "ref_audio": "narrator"}).status_code == 404
        assert client.get("/voices").json()["count"] == 0


def test_writers_at_once_lose_no_voice(pair: list[httpx.Client]) -> None:
    names = [f"voice {number}" for number in range(8)]
    with ThreadPoolExecutor(6) as pool:
        kept = list(pool.map(lambda at: keep(pair[at % 2], names[at], "belinda").status_code, range(len(names))))
    assert kept == [201] * len(names)
    for client in pair:
        assert [voice["name"] for voice in client.get("/voices").json()["voices"]] == sorted(names)

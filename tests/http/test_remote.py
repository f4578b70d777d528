"""A server before another: what one asks the first is what the second would have said itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from answers import events, generated_samples, streamed_samples
from server_process import ServerProcess

BASE: dict[str, Any] = {"text": "Hello there, this is a test.", "seed": 5, "max_new_tokens": 40}


@pytest.fixture(scope="module")
def server(native_server: ServerProcess) -> Iterator[ServerProcess]:
    with ServerProcess(["--model-path", native_server.url]) as process:
        process.wait_ready()
        yield process


@pytest.fixture
def behind(native_server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=native_server.url, timeout=120) as client:
        yield client


def test_it_is_as_able_as_the_server_behind_it(client: httpx.Client, behind: httpx.Client) -> None:
    info, other = client.get("/info").json(), behind.get("/info").json()
    assert info["supported_features"] == other["supported_features"]
    assert (info["device"], info["is_loaded"]) == ("remote", True)
    assert other["model_name"] in info["note"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"scene_prompt": None},
        {"top_k": None, "ras_win_len": None, "temperature": 1.4},
        {"scene_prompt": "reading_blog", "ref_audio": "belinda"},
        {"text": "[SPEAKER0] Hello there.\n[SPEAKER1] Good morning."},
        {"text": "Hello there. [laugh]"},
        {
            "text": "Two pieces. One text.",
            "chunk_method": "word",
            "chunk_max_word_num": 2,
            "generation_chunk_buffer_size": 0,
        },
    ],
    ids=["plain", "no-scene", "off", "scene-and-voice", "speakers", "sounds", "pieces"],
)
def test_the_answer_is_the_one_of_the_server_behind_it(
    client: httpx.Client, behind: httpx.Client, fields: dict[str, Any]
) -> None:
    direct = behind.post("/generate", json=BASE | fields).raise_for_status().json()
    through = client.post("/generate", json=BASE | fields).raise_for_status().json()
    assert np.array_equal(generated_samples(through), generated_samples(direct))
    with client.stream("POST", "/generate-stream", json=BASE | fields) as answer:
        assert np.array_equal(streamed_samples(events(answer.iter_lines())), generated_samples(direct))


def test_who_goes_away_frees_the_server_behind_it(client: httpx.Client, native_server: ServerProcess) -> None:
    text = " ".join(f"And number {n}." for n in range(20))
    body = {**BASE, "text": text, "max_new_tokens": 2000, "temperature": 1.9, "top_k": None, "top_p": 1.0}
    with client.stream("POST", "/generate-stream", json=body) as answer:
        next(answer.iter_lines())
    native_server.wait_for(r"POST /v1/audio/speech 200 \S+ cancelled")


def test_a_refusal_of_the_engine_reaches_the_client(client: httpx.Client) -> None:
    answer = client.post(
        "/generate", json={**BASE, "text": "word " * 3_900, "max_new_tokens": 2_000}, headers={"accept-language": "en"}
    )
    assert answer.status_code == 422
    assert "refused (400)" in answer.json()["message"]

"""OpenAI's speech API: fields, voices, usage and errors. Its formats and its clients have files of their own."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from answers import events
from higgs_server.server.openai import OPENAI_VOICES
from server_process import ROOT, ServerProcess

TEXT = "The ferry leaves at dawn. Nobody on the pier had slept. A gull stood on the rail and watched us."


def speech(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/audio/speech", json={"model": "tts-1", "input": "Hello.", "voice": "alloy", **fields})


def test_events_carry_the_same_sound_and_the_usage(client: httpx.Client) -> None:
    body = {"input": TEXT, "voice": "belinda", "response_format": "pcm", "stream_format": "sse"}
    with client.stream("POST", "/v1/audio/speech", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = list(events(answer.iter_lines()))
    assert [event["type"] for event in found[:-1]] == ["speech.audio.delta"] * (len(found) - 1)
    sound = b"".join(base64.b64decode(event["audio"]) for event in found[:-1])
    assert sound == speech(client, input=TEXT, voice="belinda", response_format="pcm").content
    usage = found[-1]["usage"]
    assert found[-1]["type"] == "speech.audio.done"
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] == pytest.approx(len(sound) / 2 / 960, abs=1)


def test_every_name_of_openais_is_a_shipped_voice(client: httpx.Client) -> None:
    shipped = {voice["id"] for voice in client.get("/v1/audio/voices").json()["voices"]}
    assert set(OPENAI_VOICES.values()) <= shipped
    assert len(OPENAI_VOICES) == 13


@pytest.mark.parametrize("voice", ["coral", "Nova", "belinda", {"id": "marin"}, None])
def test_voices_go_by_openais_names_and_ours(client: httpx.Client, voice: Any) -> None:
    answer = speech(client, input="Yes.", voice=voice, response_format="pcm")
    assert answer.status_code == 200
    assert len(answer.content) > 5_000


def test_lists_of_models_and_voices(client: httpx.Client) -> None:
    assert "embedded" in [model["id"] for model in client.get("/v1/audio/models").json()["models"]]
    voices = client.get("/v1/audio/voices").json()["voices"]
    assert ("belinda", "belinda") in [(voice["id"], voice["name"]) for voice in voices]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input": ""}, 400, "input"),
        ({"input": " "}, 400, "input"),
        ({"input": None}, 400, "input"),
        ({"input": "x" * 100_001}, 413, "input"),
        ({"instructions": "x" * 100_001}, 413, "instructions"),
        ({"speed": 0.2}, 400, "speed"),
        ({"speed": 4.1}, 400, "speed"),
        ({"response_format": "midi"}, 400, "response_format"),
        ({"stream_format": "x"}, 400, "stream_format"),
        ({"voice": "nobody"}, 404, "voice"),
        ({"voice": "../belinda"}, 400, "voice"),
        ({"temperature": 3}, 400, "temperature"),
        ({"ref_audio": "http://example.com/a.wav"}, 400, "ref_audio"),
        ({"ref_audio": "data:audio/wav;base64,!!!"}, 400, "ref_audio"),
        ({"ref_audio": "data:audio/wav;base64,AAAA"}, 415, "ref_audio"),
    ],
)
def test_errors_have_openais_envelope(client: httpx.Client, fields: dict[str, Any], status: int, param: str) -> None:
    answer = speech(client, **fields)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["message"].isascii()
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"]


def test_errors_of_every_kind_under_v1(client: httpx.Client) -> None:
    for answer, status in (
        (client.get("/v1/nothing"), 404),
        (client.get("/v1/audio/speech"), 405),
        (client.post("/v1/audio/speech", content=b"{", headers={"content-type": "application/json"}), 400),
        (client.post("/v1/audio/speech", content=b"{}", headers={"content-type": "text/plain"}), 415),
    ):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_unknown_fields_and_instructions_are_no_obstacle(client: httpx.Client) -> None:
    answer = speech(client, input="Yes.", instructions="Speak softly.", foo=1, lang="en", response_format="pcm")
    assert answer.status_code == 200


def test_instructions_and_a_clip_reach_a_model_that_can(native_server: ServerProcess) -> None:
    clip = base64.b64encode((ROOT / "examples/voice_prompts/mabel.wav").read_bytes()).decode()
    ways: list[dict[str, Any]] = [
        {},
        {"instructions": "Recorded in a cave."},
        {"voice": "mabel"},
        {"ref_audio": f"data:audio/wav;base64,{clip}"},
        {"ref_audio": f"data:audio/wav;base64,{clip}", "ref_text": "Something."},
    ]
    base = {"input": "Hello there.", "seed": 1, "max_new_tokens": 30, "response_format": "pcm", "voice": None}
    with httpx.Client(base_url=native_server.url, timeout=120) as client:
        sounds = [speech(client, **base | way).raise_for_status().content for way in ways]
    assert len(set(sounds)) == len(ways)

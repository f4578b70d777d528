"""OpenAI's speech API, by OpenAI's own client and as other programs call it."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import av
import httpx
import numpy as np
import numpy.typing as npt
import openai
import pytest

from answers import events, generated_samples
from higgs_server.server.openai import OPENAI_VOICES
from server_process import ROOT, ServerProcess

TEXT = "The ferry leaves at dawn. Nobody on the pier had slept. A gull stood on the rail and watched us."
CONTENT_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


@pytest.fixture
def oai(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def decoded(data: bytes, form: str) -> npt.NDArray[np.float32]:
    """Mono samples at 24 kHz, by FFmpeg's own probing: it is not told what the bytes are."""
    if form == "pcm":
        return np.frombuffer(data, "<i2").astype(np.float32) / 32767
    resampler = av.AudioResampler(format="flt", layout="mono", rate=24_000)
    pieces = []
    with av.open(io.BytesIO(data)) as source:
        for frame in source.decode(audio=0):
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
        pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
    return np.concatenate(pieces)


def whole(client: httpx.Client, **fields: Any) -> npt.NDArray[np.int16]:
    return generated_samples(client.post("/generate", json=fields).raise_for_status().json())


def speech(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/audio/speech", json={"model": "tts-1", "input": "Hello.", "voice": "alloy", **fields})


@pytest.mark.parametrize("form", CONTENT_TYPES)
def test_every_format_decodes_to_the_same_speech(oai: openai.OpenAI, client: httpx.Client, form: Any) -> None:
    expected = whole(client, text=TEXT, ref_audio="belinda", chunk_method="word")
    with oai.audio.speech.with_streaming_response.create(
        model="tts-1", voice="nova", input=TEXT, response_format=form
    ) as answer:
        assert answer.headers["content-type"].startswith(CONTENT_TYPES[form])
        assert answer.headers["x-sample-rate"] == "24000"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-request-id"]
        data = b"".join(answer.iter_bytes())
    samples = decoded(data, form)
    assert abs(len(samples) - len(expected)) / 24_000 <= 0.06
    # Loudness over time agrees to the end: nothing is missing, doubled or cut off.
    count = min(len(samples), len(expected)) // 2_400
    shape = np.sqrt((samples[: count * 2_400].reshape(count, -1) ** 2).mean(1))
    wanted = np.sqrt(((expected[: count * 2_400] / 32767).reshape(count, -1) ** 2).mean(1))
    assert np.corrcoef(shape, wanted)[0, 1] > 0.97
    if form == "pcm":
        assert data == expected.tobytes()
    if form == "wav":
        assert data[4:8] == data[40:44] == b"\xff\xff\xff\xff"
    if form == "mp3":
        assert b"Xing" not in data[:2_000]
        assert b"Info" not in data[:2_000]


@pytest.mark.parametrize("form", CONTENT_TYPES)
def test_the_first_bytes_come_long_before_the_last(client: httpx.Client, form: str) -> None:
    body = {"input": " ".join([TEXT] * 4), "voice": "belinda", "response_format": form}
    started = time.perf_counter()
    with client.stream("POST", "/v1/audio/speech", json=body) as answer:
        arrivals = [time.perf_counter() - started for data in answer.iter_raw() if len(data) > 100]
    assert arrivals[0] < 0.5 * arrivals[-1]


def test_the_plain_client_writes_a_file(oai: openai.OpenAI, tmp_path: Any) -> None:
    file = tmp_path / "a.mp3"
    oai.audio.speech.create(model="gpt-4o-mini-tts", voice="cedar", input="Good evening.").write_to_file(
        tmp_path / "a.mp3"
    )
    assert len(decoded(file.read_bytes(), "mp3")) > 10_000


def test_speed_changes_the_length(client: httpx.Client) -> None:
    lengths = {
        speed: len(speech(client, input=TEXT, voice="belinda", response_format="pcm", speed=speed).content)
        for speed in (0.5, 1.0, 2.0)
    }
    assert lengths[0.5] == pytest.approx(2 * lengths[1.0], rel=0.03)
    assert lengths[2.0] == pytest.approx(lengths[1.0] / 2, rel=0.03)


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


def test_lists_of_models_and_voices(oai: openai.OpenAI, client: httpx.Client) -> None:
    assert {"embedded", "tts-1"} <= {model.id for model in oai.models.list()}
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
        ({"speed": 0.2}, 400, "speed"),
        ({"speed": 4.1}, 400, "speed"),
        ({"response_format": "midi"}, 400, "response_format"),
        ({"stream_format": "x"}, 400, "stream_format"),
        ({"voice": "nobody"}, 404, "ref_audio"),
        ({"voice": "../belinda"}, 400, "ref_audio"),
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


def test_errors_of_every_kind_under_v1(client: httpx.Client, oai: openai.OpenAI) -> None:
    for answer, status in (
        (client.get("/v1/nothing"), 404),
        (client.get("/v1/audio/speech"), 405),
        (client.post("/v1/audio/speech", content=b"{", headers={"content-type": "application/json"}), 400),
        (client.post("/v1/audio/speech", content=b"{}", headers={"content-type": "text/plain"}), 415),
    ):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    with pytest.raises(openai.BadRequestError):
        oai.audio.speech.create(model="tts-1", voice="alloy", input="Hi.", speed=9)
    with pytest.raises(openai.NotFoundError, match="belinda"):
        oai.audio.speech.create(model="tts-1", voice="nobody", input="Hi.")


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


def test_twenty_streams_of_mixed_formats_do_not_mix(client: httpx.Client) -> None:
    texts = ["One moment.", "Of course not.", "Perhaps tomorrow.", "Tell me more."]
    expected = {text: len(whole(client, text=text, ref_audio="belinda")) for text in texts}
    jobs = [(texts[n % 4], list(CONTENT_TYPES)[n % 6]) for n in range(20)]

    def run(job: tuple[str, str]) -> int:
        text, form = job
        return len(decoded(speech(client, input=text, voice="belinda", response_format=form).content, form))

    with ThreadPoolExecutor(20) as pool:
        lengths = list(pool.map(run, jobs))
    for (text, _), length in zip(jobs, lengths, strict=True):
        assert abs(length - expected[text]) / 24_000 <= 0.06


def test_what_common_clients_send(client: httpx.Client) -> None:
    for body in (
        {"model": "tts-1", "input": "Open WebUI.", "voice": "alloy"},
        {"model": "tts-1", "input": "SillyTavern.", "voice": "alloy", "response_format": "mp3", "speed": 1},
        {
            "model": "tts-1",
            "input": "LiveKit.",
            "voice": "ash",
            "response_format": "mp3",
            "speed": 1.0,
            "instructions": "",
        },
        {"model": "gpt-4o-mini-tts", "input": "Pipecat.", "voice": "alloy", "response_format": "pcm"},
    ):
        answer = client.post("/v1/audio/speech", content=json.dumps(body), headers={"content-type": "application/json"})
        assert answer.status_code == 200
        assert len(decoded(answer.content, body.get("response_format", "mp3"))) > 5_000  # type: ignore[arg-type]

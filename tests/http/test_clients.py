"""Programs that people have: OpenAI's own client, and requests to the letter as other programs send and read them.

Where a program's name stands over a test, its source was read for URL, headers, body, and how it takes the answer.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import httpx
import openai
import pytest

from answers import events
from decoders import RATE, decode
from higgs_server.audio.encoders import FORMATS
from server_process import ServerProcess

TEXT = "The ferry leaves at dawn. Nobody on the pier had slept."


@pytest.fixture
def oai(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120) as client:
        yield client


@pytest.fixture
def spoken(client: httpx.Client) -> bytes:
    """PCM of TEXT by belinda."""
    body = {"input": TEXT, "voice": "belinda", "response_format": "pcm"}
    return client.post("/v1/audio/speech", json=body).raise_for_status().content


def lasts_as_long(data: bytes, form: str, spoken: bytes) -> bool:
    return abs(len(decode(data, form)) - len(spoken) / 2) <= 0.06 * RATE


def posted(server: ServerProcess, body: dict[str, Any], headers: dict[str, str]) -> bytes:
    """The answer, read in blocks; headers go out as they are, also those that httpx finds wrong."""
    request = Request(f"{server.url}/v1/audio/speech", json.dumps(body).encode(), headers, method="POST")
    with urlopen(request, timeout=120) as answer:
        return b"".join(iter(lambda: answer.read(8192), b""))


# --- OpenAI's Python library ----------------------------------------------------------------------------------------


def test_openai_writes_a_file(oai: openai.OpenAI, tmp_path: Path, spoken: bytes) -> None:
    answer = oai.audio.speech.create(model="gpt-4o-mini-tts", voice="nova", input=TEXT)
    answer.write_to_file(tmp_path / "a.mp3")
    assert lasts_as_long((tmp_path / "a.mp3").read_bytes(), "mp3", spoken)


@pytest.mark.parametrize("form", FORMATS)
def test_openai_streams_every_format(oai: openai.OpenAI, form: Any, spoken: bytes) -> None:
    create = oai.audio.speech.with_streaming_response.create
    with create(model="tts-1", voice="nova", input=TEXT, response_format=form) as answer:
        assert answer.headers["content-type"].startswith(FORMATS[form].content_type)
        assert answer.headers["x-sample-rate"] == str(RATE)
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.request_id
        assert lasts_as_long(b"".join(answer.iter_bytes()), form, spoken)


def test_openai_reads_events(oai: openai.OpenAI, spoken: bytes) -> None:
    with oai.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="nova", input=TEXT, response_format="pcm", stream_format="sse"
    ) as answer:
        *sounds, last = events(answer.iter_lines())
    assert {event["type"] for event in sounds} == {"speech.audio.delta"}
    assert last["type"] == "speech.audio.done"
    assert last["usage"]["total_tokens"] > 0


def test_openai_asks_many_times_at_once(server: ServerProcess, spoken: bytes) -> None:
    async def ask() -> list[bytes]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120) as client:

            async def one() -> bytes:
                answer = await client.audio.speech.create(
                    model="tts-1", voice="nova", input=TEXT, response_format="pcm"
                )
                return await answer.aread()

            return await asyncio.gather(*(one() for _ in range(4)))

    assert asyncio.run(ask()) == [spoken] * 4


def test_openai_raises_its_own_exceptions(oai: openai.OpenAI) -> None:
    def create(**fields: Any) -> Any:
        return oai.audio.speech.create(**{"model": "tts-1", "voice": "alloy", "input": "Hi.", **fields})

    with pytest.raises(openai.BadRequestError) as wrong:
        create(speed=9)
    assert (wrong.value.param, wrong.value.code) == ("speed", "invalid_request")
    assert wrong.value.request_id
    with pytest.raises(openai.NotFoundError, match="belinda"):
        create(voice="nobody")
    with pytest.raises(openai.BadRequestError, match="input"):
        create(input=" ")
    with pytest.raises(openai.APIStatusError) as large:
        create(input="x" * 100_001)
    assert large.value.status_code == 413
    with pytest.raises(openai.NotFoundError):
        oai.chat.completions.create(model="tts-1", messages=[])


def test_openai_does_not_retry_what_cannot_get_better() -> None:
    with (
        ServerProcess(["--model-path", "/no/such/folder", "--api-key", "s3cret"]) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="s3cret", max_retries=3) as client,
    ):
        server.wait_for(r"server\.model: no model:")
        with pytest.raises(openai.InternalServerError, match="embedded"):
            client.audio.speech.create(model="tts-1", voice="alloy", input="Hi.")
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").audio.speech.create(model="tts-1", voice="alloy", input="Hi.")
        assert len(client.with_options(timeout=60).models.list().data) > 1  # its log line comes after theirs
        server.wait_for("GET /v1/models 200")
        assert re.findall(r"POST /v1/audio/speech (\d+)", server.log) == ["503", "401"]


def test_openai_waits_for_a_model_that_loads() -> None:
    with (
        ServerProcess(["--model-path", "embedded"]) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=30, timeout=120) as client,
    ):
        assert len(client.audio.speech.create(model="tts-1", voice="nova", input="Hi.").read()) > 2_000


def test_openai_lists_models(oai: openai.OpenAI) -> None:
    models = list(oai.models.list())
    assert {"embedded", "tts-1", "gpt-4o-mini-tts"} <= {model.id for model in models}
    assert {model.object for model in models} == {"model"}


# --- Open WebUI -----------------------------------------------------------------------------------------------------


def test_open_webui(client: httpx.Client, spoken: bytes) -> None:
    """Reads both lists when its settings open, without a key; posts what its page sends plus the model."""
    models = client.get("/v1/audio/models").raise_for_status().json().get("models", [])
    voices = client.get("/v1/audio/voices").raise_for_status().json().get("voices", [])
    assert "tts-1" in {model["id"] for model in models}
    assert {voice["id"]: voice["name"] for voice in voices}["belinda"] == "belinda"
    headers = {
        "Content-Type": "application/json",
        "Authorization": "Bearer sk-anything",
        "X-OpenWebUI-User-Name": "Ann",
        "X-OpenWebUI-User-Role": "admin",
    }
    payload: dict[str, Any] = {"input": TEXT, "voice": "belinda", "model": "tts-1"}
    answer = client.post("/v1/audio/speech", json=payload, headers=headers)
    assert answer.headers["content-type"].startswith("audio/")
    assert lasts_as_long(answer.content, "mp3", spoken)
    # "Additional Parameters" are merged into the body; an error's `error` is what its user is shown.
    wrong = client.post("/v1/audio/speech", json={**payload, "speed": 1.2, "voice": "nobody"}, headers=headers)
    assert "belinda" in wrong.json()["error"]["message"]


# --- SillyTavern ----------------------------------------------------------------------------------------------------


def test_sillytavern(server: ServerProcess, spoken: bytes) -> None:
    """Its server posts to the whole address that was entered, with an empty key where there is none."""
    headers = {"Content-Type": "application/json", "Authorization": "Bearer "}
    body = {"input": TEXT, "response_format": "mp3", "voice": "nova", "speed": 1, "model": "tts-1"}
    assert lasts_as_long(posted(server, body, headers), "mp3", spoken)


# --- LiveKit and Pipecat --------------------------------------------------------------------------------------------


def test_livekit(server: ServerProcess, spoken: bytes) -> None:
    """The openai plugin: warms the connection up, streams mp3 as it comes, names the request by its id."""

    async def ask() -> tuple[str | None, bytes]:
        async with openai.AsyncClient(
            max_retries=0, api_key="none", base_url=f"{server.url}/v1", timeout=120
        ) as client:
            with pytest.raises(openai.NotFoundError):  # which the plugin ignores
                await client.get("/", cast_to=str)
            async with client.audio.speech.with_streaming_response.create(
                input=TEXT,
                model="gpt-4o-mini-tts",
                voice="nova",
                response_format="mp3",
                speed=1.0,
                instructions="Calmly.",
            ) as stream:
                return stream.request_id, b"".join([data async for data in stream.iter_bytes()])

    request_id, data = asyncio.run(ask())
    assert request_id
    assert lasts_as_long(data, "mp3", spoken)


def test_pipecat(server: ServerProcess, spoken: bytes) -> None:
    """OpenAITTSService: PCM at 24 kHz in chunks of its own size, under a name of OpenAI's for a voice."""

    fields: dict[str, Any] = {"response_format": "pcm", "extra_body": {"instructions": "Calmly."}}

    async def ask() -> list[bytes]:
        async with (
            openai.AsyncOpenAI(api_key="none", base_url=f"{server.url}/v1", timeout=120) as client,
            client.audio.speech.with_streaming_response.create(
                input=TEXT, model="gpt-4o-mini-tts", voice="nova", **fields
            ) as answer,
        ):
            assert answer.status_code == 200
            return [chunk async for chunk in answer.iter_bytes(24_000) if chunk]

    chunks = asyncio.run(ask())
    assert {len(chunk) for chunk in chunks[:-1]} == {24_000}
    assert b"".join(chunks) == spoken


# --- Home Assistant -------------------------------------------------------------------------------------------------


def test_home_assistant_openai_tts(server: ServerProcess, client: httpx.Client, spoken: bytes) -> None:
    """The integration openai_tts: tries the key with a full stop, lists voices, then reads mp3 in blocks."""
    probe = {"model": "tts-1", "input": ".", "voice": "alloy", "response_format": "mp3"}
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "HomeAssistant-OpenAI-TTS",
        "Authorization": "Bearer x",
    }
    assert client.post("/v1/audio/speech", json=probe, headers=headers).is_success
    voices = client.get("/v1/audio/voices", params={"limit": 100}, headers=headers).json()
    assert "belinda" in [voice["id"] for voice in voices["voices"]]
    body = {"model": "tts-1", "input": TEXT, "voice": "nova", "response_format": "mp3", "speed": 1.0}
    assert lasts_as_long(posted(server, body, headers), "mp3", spoken)


def test_home_assistant_wyoming_openai(oai: openai.OpenAI, spoken: bytes) -> None:
    """The bridge wyoming_openai: WAV as it comes, its header read from the first bytes, samples handed on."""
    create = oai.audio.speech.with_streaming_response.create
    with create(model="tts-1", voice="belinda", input=TEXT, response_format="wav") as answer:
        first, *rest = answer.iter_bytes(chunk_size=2_048)
    with wave.open(io.BytesIO(first)) as header:
        assert (header.getframerate(), header.getsampwidth(), header.getnchannels()) == (RATE, 2, 1)
    assert b"".join([first, *rest])[44:] == spoken


@pytest.mark.parametrize("text", [".", "...", "🙂", "。", "”", "\u200b"])
def test_a_text_without_words_is_a_pause(client: httpx.Client, text: str) -> None:
    """Agents send what a language model writes, piece by piece."""
    body = {"input": text, "voice": "belinda", "response_format": "pcm", "stream_format": "sse"}
    *sounds, done = events(client.post("/v1/audio/speech", json=body).raise_for_status().text.splitlines())
    assert len(sounds) == 1
    assert done["usage"] == {"input_tokens": 0, "output_tokens": 5, "total_tokens": 5}
    assert client.post("/v1/audio/speech", json={**body, "voice": "nobody"}).status_code == 404

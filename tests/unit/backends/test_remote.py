"""The remote backend before an engine with vLLM-Omni's shapes: what it sends, and what it makes of the answers."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from higgs_server.audio import wav
from higgs_server.audio.decode import decode
from higgs_server.backends import backend_for, load_backend, remote
from higgs_server.backends.remote import RemoteBackend
from higgs_server.types import (
    AudioChunk,
    Cancellation,
    Cancelled,
    Clip,
    Feature,
    InvalidRequest,
    LoadError,
    LoadOptions,
    NotReady,
    Profile,
    SamplingParams,
    Scene,
    Script,
    SpeechError,
    TooLarge,
    Unsupported,
    Voice,
)

KEY = "sk-very-secret"
TONE = (np.sin(np.arange(24_000) / 20) * 20_000).astype("<i2")
PAGES: dict[str, Any] = {
    "/v1/models": {"object": "list", "data": [{"id": "bosonai/higgs-audio-v3-tts-4b", "object": "model"}]},
    "/v1/audio/voices": {"voices": ["vivian", "ryan"], "uploaded_voices": []},
    "/openapi.json": {"components": {"schemas": {"OpenAICreateSpeechRequest": {"properties": {"ref_audio": {}}}}}},
}


class Engine(ThreadingHTTPServer):
    """What the engine was asked; `hung_up` is set when a client that was kept waiting goes away."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.hung_up = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    """The first word of the input says what happens."""

    protocol_version = "HTTP/1.1"
    server: Engine

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.keys.add(self.headers["authorization"])
        page = PAGES.get(self.path)
        self.answer(200, page) if page else self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.server.keys.add(self.headers["authorization"])
        match body["input"].split()[0].rstrip("."):
            case "Refuse":
                self.answer(400, {"error": {"message": "no such thing", "type": "BadRequestError", "code": 400}})
            case "Busy":
                self.answer(503, {"error": {"message": "too many"}}, **{"Retry-After": "7"})
            case "Events":
                self.answer(200, {"type": "speech.audio.delta"}, **{"Content-Type": "text/event-stream"})
            case "Cut":
                self.begin()
                self.chunk(TONE.tobytes())
            case "Wait":
                self.begin()
                self.chunk(TONE.tobytes())
                self.connection.settimeout(60)
                with suppress(ConnectionResetError):  # how it ends where bytes were left unread
                    assert self.connection.recv(1) == b""
                self.server.hung_up.set()
            case "Rate":
                self.begin(**{"x-sample-rate": "".join(body["input"].split()[1:2])})
                self.chunk(TONE.tobytes())
                self.chunk(b"")
            case _:
                self.begin()
                data = TONE.tobytes()
                for start in range(0, len(data), 4_001):  # not a whole number of samples
                    self.chunk(data[start : start + 4_001])
                self.chunk(b"")
        self.close_connection = True

    def answer(self, status: int, content: Any, **headers: str) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def begin(self, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Type": "audio/pcm", "Transfer-Encoding": "chunked", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as it:
        thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield it
        it.shutdown()
        thread.join()


@pytest.fixture
def backend(engine: Engine) -> Iterator[RemoteBackend]:
    it = remote.load(LoadOptions(model_path=f"{engine.url}/v1", remote_api_key=KEY), lambda stage, fraction: None)
    yield it
    it.close()


def script(*chunks: str, voices: tuple[Voice, ...] = (), max_new_tokens: int = 2048) -> Script:
    return Script(chunks, SamplingParams(seed=7, max_new_tokens=max_new_tokens), voices)


def speak(backend: RemoteBackend, what: Script) -> list[AudioChunk]:
    backend.check(what)
    return list(backend.speak(what, Cancellation()))


def clip(level: float, name: str = "upload") -> Voice:
    return Voice(name, f"It says {level}.", clip=Clip(np.full(2_400, level, np.float32)))


def test_it_promises_what_the_engine_has(backend: RemoteBackend) -> None:
    assert backend.info.features == {
        Feature.SINGLE_SPEAKER,
        Feature.MULTI_SPEAKER,
        Feature.STREAMING,
        Feature.VOICE_CLONING,
    }
    assert backend.info.extra == {"model": "bosonai/higgs-audio-v3-tts-4b", "voices": ["vivian", "ryan"]}


def test_voices_are_known_by_id_or_else_by_name(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [{"id": "v1", "name": "Vivian"}, {"name": "ryan"}, {"language": "en"}, "amy"]
    monkeypatch.setitem(PAGES, "/v1/audio/voices", {"voices": listed})
    told = remote.load(LoadOptions(model_path=engine.url), lambda stage, fraction: None)
    assert told.info.extra["voices"] == ["v1", "ryan", "amy"]


def test_a_clip_of_the_library_without_an_end_is_refused(
    backend: RemoteBackend, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.backend, "MAX_CLIP_SECONDS", 0.5)
    with pytest.raises(TooLarge, match=r"longer than 0\.5 seconds"):
        speak(backend, script("Hello.", voices=(Voice("long", recording=wav.encode(np.zeros(24_000, np.float32))),)))
    assert engine.bodies == []


def test_an_engine_that_takes_no_clips_clones_none(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PAGES, "/openapi.json")
    monkeypatch.delitem(PAGES, "/v1/audio/voices")
    plain = remote.load(LoadOptions(model_path=engine.url), lambda stage, fraction: None)
    assert plain.info.features == {Feature.SINGLE_SPEAKER, Feature.STREAMING}
    with pytest.raises(Unsupported, match=r"upload.*its voices: none"):
        plain.check(script("Hello.", voices=(clip(0.1),)))
    speak(plain, script("Hello."))
    assert engine.bodies[0]["voice"] == "default"
    assert engine.keys == {None}


def test_the_sound_is_what_was_sent_and_the_request_what_all_engines_take(
    backend: RemoteBackend, engine: Engine
) -> None:
    chunks = speak(backend, script("Hello there."))
    assert len(chunks) > 2
    samples = np.concatenate([chunk.samples for chunk in chunks])
    assert np.array_equal(np.rint(samples * 32767).astype(np.int16), TONE)
    assert chunks[-1].finish_reason == "stop"
    (body,) = engine.bodies
    wanted = {"input": "Hello there.", "voice": "vivian", "response_format": "pcm", "stream": True, "seed": 7}
    assert wanted.items() <= body.items()
    assert body["stream_format"] == "audio"
    assert "scene_prompt" not in body
    assert engine.keys == {f"Bearer {KEY}"}


def test_each_turn_is_asked_for_with_the_voice_of_its_speaker(backend: RemoteBackend, engine: Engine) -> None:
    voices = (clip(0.25), Voice("ryan"))
    chunks = speak(backend, script("[SPEAKER0] Tea?\n[SPEAKER1] Please.", "[SPEAKER0] Sugar?", voices=voices))
    assert [body["input"] for body in engine.bodies] == ["Tea?", "Please.", "Sugar?"]
    first, second, third = engine.bodies
    kind, _, data = first["ref_audio"].partition(",")
    assert kind == "data:audio/wav;base64"
    assert np.allclose(decode(base64.b64decode(data)).samples, 0.25, atol=1e-4)
    assert first["ref_text"] == "It says 0.25."
    assert (second["voice"], "ref_audio" in second) == ("ryan", False)
    assert third["ref_audio"] == first["ref_audio"]
    assert [chunk.chunk for chunk in chunks] == sorted(chunk.chunk for chunk in chunks)
    assert {chunk.chunks for chunk in chunks} == {2}


@pytest.mark.parametrize(
    "what",
    [
        replace(script("Hello."), profile=Profile("narrator", "An old man.")),
        replace(script("Hello."), scene=Scene("on_a_ship", "Waves.")),
        script("[SPEAKER0] Tea?\n[SPEAKER1] Please."),
        script("Hello.", "Well <SE>[Laughter]</SE> then."),
    ],
    ids=["profile", "scene", "speakers", "sounds"],
)
def test_what_no_field_says_is_refused(backend: RemoteBackend, what: Script) -> None:
    with pytest.raises(Unsupported, match="higgs-audio-v3-tts-4b at http"):
        backend.check(what)


def test_a_voice_too_few_is_told(backend: RemoteBackend) -> None:
    with pytest.raises(InvalidRequest, match="SPEAKER1"):
        backend.check(script("[SPEAKER0] Tea?\n[SPEAKER1] Please.", voices=(Voice("ryan"),)))


def test_max_new_tokens_holds_whatever_the_engine_sends(backend: RemoteBackend) -> None:
    chunks = speak(backend, script("Hello.", max_new_tokens=10))
    assert sum(len(chunk.samples) for chunk in chunks) == 10 * 960
    assert chunks[-1].finish_reason == "length"


@pytest.mark.parametrize("said", ["", "24000", "24000.0"])
def test_the_usual_rate_is_taken_however_it_is_written(backend: RemoteBackend, said: str) -> None:
    samples = np.concatenate([chunk.samples for chunk in speak(backend, script(f"Rate {said}"))])
    assert np.array_equal(np.rint(samples * 32767).astype(np.int16), TONE)


def test_another_rate_is_resampled(backend: RemoteBackend) -> None:
    samples = np.concatenate([chunk.samples for chunk in speak(backend, script("Rate 48000"))])
    assert len(samples) == pytest.approx(12_000, abs=2)
    assert np.abs(samples).max() == pytest.approx(20_000 / 32_767, abs=0.02)


@pytest.mark.parametrize(
    ("word", "kind", "says"),
    [
        ("Refuse", InvalidRequest, r"refused \(400\): no such thing"),
        ("Busy", NotReady, r"\(503\): too many"),
        ("Cut", SpeechError, "middle of the sound"),
        ("Events", SpeechError, "text/event-stream"),
        ("Rate fast", SpeechError, "of fast samples a second"),
        ("Rate 0", SpeechError, "of 0 samples a second"),
    ],
)
def test_errors_are_passed_on(backend: RemoteBackend, word: str, kind: type[SpeechError], says: str) -> None:
    with pytest.raises(kind, match=says) as told:
        speak(backend, script(f"{word} it."))
    assert KEY not in str(told.value) + told.value.zh
    assert told.value.retry_after == (7 if kind is NotReady else None)


def test_a_cancellation_hangs_up_while_the_engine_is_silent(backend: RemoteBackend, engine: Engine) -> None:
    cancellation = Cancellation()
    stream = backend.speak(script("Wait."), cancellation)
    assert len(next(stream).samples)
    threading.Timer(0.05, cancellation.cancel).start()
    with pytest.raises(Cancelled):
        list(stream)
    assert engine.hung_up.wait(30)


def test_who_stops_reading_hangs_up(backend: RemoteBackend, engine: Engine) -> None:
    stream = backend.speak(script("Wait."), Cancellation())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert engine.hung_up.wait(30)


@pytest.mark.parametrize("address", ["http://", "http://host:port", "http://user:pass@host", "https://"])
def test_no_address_is_told(address: str) -> None:
    assert backend_for(address) == "remote"
    with pytest.raises(LoadError) as told:
        load_backend(LoadOptions(model_path=address), lambda stage, fraction: None)
    assert "pass@" not in str(told.value) + told.value.zh


def test_an_engine_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LOAD_SECONDS", 0.0)
    with pytest.raises(LoadError, match=r"127\.0\.0\.1:9 does not answer \(Connection refused\)\. Is it running\?"):
        remote.load(LoadOptions(model_path="http://127.0.0.1:9"), lambda stage, fraction: None)


def test_a_page_that_is_no_engine_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAGES, "/v1/models", ["not", "an", "object"])
    with pytest.raises(LoadError, match="no speech engine"):
        remote.load(LoadOptions(model_path=engine.url), lambda stage, fraction: None)


def test_the_key_shows_in_no_representation() -> None:
    assert KEY not in repr(LoadOptions(model_path="http://host", remote_api_key=KEY))

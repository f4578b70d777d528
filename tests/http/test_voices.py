"""The voice library over HTTP: kept, listed, played, renamed, replaced, removed; and spoken with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from answers import events, generated_samples, streamed_samples, wav_samples
from higgs_server.audio import wav
from higgs_server.library.voices import SHIPPED
from hostile_clips import container, encoded, speech
from server_process import ROOT, ServerProcess

VOICES = "/v1/audio/voices"
WORDS = (ROOT / "examples/voice_prompts/belinda.txt").read_text().strip()


@pytest.fixture(autouse=True)
def only_what_ships(client: httpx.Client) -> Iterator[None]:
    """Before and after: the server is everybody's."""
    remove_all(client)
    yield
    remove_all(client)


def remove_all(client: httpx.Client) -> None:
    for name, voice in listed(client).items():
        if not voice["read_only"]:
            client.delete(f"{VOICES}/{name}").raise_for_status()


def listed(client: httpx.Client) -> dict[str, dict[str, Any]]:
    return {voice["name"]: voice for voice in client.get(VOICES).raise_for_status().json()["voices"]}


def keep(client: httpx.Client, name: str, data: bytes | None = None, query: str = "", **fields: str) -> httpx.Response:
    sample = wav.encode(speech()) if data is None else data
    return client.post(f"{VOICES}{query}", data={"name": name, **fields}, files={"audio_sample": ("a.wav", sample)})


def error(answer: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and param of an error in OpenAI's envelope that a retry cannot help."""
    assert answer.headers["x-should-retry"] == "false"
    body = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= body.keys()
    return answer.status_code, body["code"], body["param"]


def test_the_listing_says_what_there_is(client: httpx.Client) -> None:
    voices = listed(client)
    assert voices.keys() == SHIPPED
    for name, voice in voices.items():
        assert voice.keys() == {"id", "name", "language", "duration", "transcript", "read_only"}
        assert voice["id"] == name
        assert voice["language"] == name.partition("_")[0] if "_" in name else "en"
        assert voice["read_only"] is True
        clip = ROOT / f"examples/voice_prompts/{name}.wav"
        assert voice["duration"] == pytest.approx((clip.stat().st_size - 44) / 48_000, abs=0.01)
        assert voice["transcript"] == clip.with_suffix(".txt").read_text().strip()


FORMATS = {
    "wav": lambda: wav.encode(speech()),
    "mp3": lambda: encoded("mp3"),
    "flac": lambda: encoded("flac"),
    "opus": lambda: encoded("opus"),
    "aac": lambda: encoded("aac"),
    "m4a": lambda: container("mp4", "aac"),
    "webm": lambda: container("webm", "libopus", rate=48_000),
}


@pytest.mark.parametrize("form", FORMATS)
def test_any_common_format_becomes_the_same_kind_of_clip(client: httpx.Client, form: str) -> None:
    answer = keep(client, f"from {form}", FORMATS[form](), ref_text=f" {WORDS} ")
    assert answer.status_code == 201, answer.text
    voice = answer.json()
    assert voice["warnings"] == []
    assert listed(client)[f"from {form}"].items() <= voice.items()
    assert (voice["transcript"], voice["language"], voice["read_only"]) == (WORDS, "en", False)
    sample = client.get(f"{VOICES}/from {form}/sample").raise_for_status()
    assert sample.headers["content-type"] == "audio/wav"
    samples = wav_samples(sample.content)
    # Without the silence around it, at the level of the others.
    assert 5.2 < len(samples) / 24_000 < 5.76
    assert voice["duration"] == pytest.approx(len(samples) / 24_000, abs=0.002)
    assert np.abs(samples).max() < 0.9 * 32_768
    assert 20 * np.log10(np.sqrt(np.mean((samples / 32_768.0) ** 2))) == pytest.approx(-21, abs=2)


def test_a_player_asks_again_only_for_what_has_changed(client: httpx.Client) -> None:
    keep(client, "anna").raise_for_status()
    first = client.get(f"{VOICES}/anna/sample").raise_for_status()
    assert first.headers["cache-control"] == "no-cache"
    known = {"if-none-match": first.headers["etag"]}
    assert client.get(f"{VOICES}/anna/sample", headers=known).status_code == 304
    keep(client, "anna", wav.encode(speech()[:96_000]), "?replace=true").raise_for_status()
    second = client.get(f"{VOICES}/anna/sample", headers=known)
    assert second.status_code == 200
    assert len(second.content) < len(first.content)
    assert error(client.get(f"{VOICES}/nobody/sample")) == (404, "not_found", "name")


def test_a_name_is_taken_until_it_is_said_to_be_replaced(client: httpx.Client) -> None:
    keep(client, "anna", ref_text=WORDS).raise_for_status()
    assert error(keep(client, "anna")) == (409, "already_exists", "name")
    assert listed(client)["anna"]["transcript"] == WORDS
    assert keep(client, "anna", query="?replace=true").status_code == 201
    assert listed(client)["anna"]["transcript"] is None


def test_renaming_and_what_the_clip_says(client: httpx.Client) -> None:
    keep(client, "anna").raise_for_status()
    keep(client, "bert").raise_for_status()
    changed = client.patch(f"{VOICES}/anna", json={"name": "小红", "ref_text": "你好。"}).raise_for_status().json()
    assert (changed["name"], changed["transcript"], changed["language"]) == ("小红", "你好。", "zh")
    assert changed == listed(client)["小红"]
    assert client.patch(f"{VOICES}/小红", json={"ref_text": "Привет"}).json()["language"] is None
    assert client.patch(f"{VOICES}/小红", json={"name": "anna"}).json()["transcript"] == "Привет"
    assert client.patch(f"{VOICES}/anna", json={"ref_text": None}).json()["transcript"] is None
    assert error(client.patch(f"{VOICES}/anna", json={"name": "bert"})) == (409, "already_exists", "name")
    assert error(client.patch(f"{VOICES}/anna", json={"name": "../x"})) == (400, "invalid_request", "name")
    assert error(client.patch(f"{VOICES}/anna", json={"name": 7})) == (400, "invalid_request", "name")
    assert error(client.patch(f"{VOICES}/anna", json={})) == (400, "invalid_request", None)
    assert error(client.patch(f"{VOICES}/nobody", json={"name": "x"})) == (404, "not_found", "name")
    assert listed(client).keys() == {*SHIPPED, "anna", "bert"}


def test_what_ships_stays_as_it_is(client: httpx.Client) -> None:
    before = listed(client)
    for answer in (
        keep(client, "belinda", query="?replace=true"),
        client.patch(f"{VOICES}/belinda", json={"name": "mine"}),
        client.patch(f"{VOICES}/belinda", json={"ref_text": "x"}),
        client.delete(f"{VOICES}/belinda"),
    ):
        assert error(answer) == (403, "read_only", "name")
    files = {"audio_file": ("belinda.wav", wav.encode(speech()))}
    assert client.post("/upload-audio", files=files).json()["error"]["code"] == "read_only"
    assert listed(client) == before


def test_all_problems_of_a_poor_recording_in_one_answer(client: httpx.Client) -> None:
    poor = wav.encode(np.random.default_rng(1).normal(0, 0.2, 24_000).astype(np.float32))
    answer = keep(client, "poor", poor, ref_text="word " * 90)
    assert error(answer) == (422, "unfit_recording", "audio_sample")
    problems = answer.json()["error"]["problems"]
    assert [problem["code"] for problem in problems] == ["too_short", "noisy", "transcript_mismatch"]
    assert all(problem["message"] and problem["advice"] for problem in problems)
    assert "poor" not in listed(client)
    kept = keep(client, "poor", poor, "?force=true", ref_text="word " * 90)
    assert kept.status_code == 201
    assert kept.json()["warnings"] == problems
    assert "poor" in listed(client)


def test_the_real_openai_client_keeps_and_removes_a_voice(server: ServerProcess) -> None:
    sample = ("clip.wav", wav.encode(speech()), "audio/wav")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=3) as oai:
        voice = oai.audio.voices.create(
            name="anna", audio_sample=sample, consent="cons_1234", extra_body={"ref_text": WORDS}
        )
        assert (voice.id, voice.name, voice.object, voice.type) == ("anna", "anna", "audio.voice", "audio_sample")
        assert voice.created_at > 0
        with pytest.raises(openai.ConflictError):
            oai.audio.voices.create(name="anna", audio_sample=sample, consent="cons_1234")
        poor = ("clip.wav", wav.encode(speech()[:9_000]), "audio/wav")
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            oai.audio.voices.create(name="bert", audio_sample=poor, consent="cons_1234")
        assert refused.value.code == "unfit_recording"
        assert refused.value.body["problems"][0]["code"] == "too_short"  # type: ignore[index]
        with pytest.raises(openai.PermissionDeniedError):
            oai.audio.voices.delete("belinda")
        gone = oai.audio.voices.delete("anna")
        assert (gone.id, gone.deleted) == ("anna", True)
        with pytest.raises(openai.NotFoundError):
            oai.audio.voices.delete("anna")


# --- as other servers have it ---------------------------------------------------------------------------------------


def test_an_uploaded_pair_is_a_voice(client: httpx.Client) -> None:
    files = {"audio_file": ("anna.mp3", encoded("mp3")), "text_file": ("words.txt", f"\ufeff{WORDS}\r\n".encode())}
    answer = client.post("/upload-audio", files=files).raise_for_status().json()
    assert (answer["success"], answer["uploaded_file"], answer["uploaded_txt_file"]) == (True, "anna.wav", "anna.txt")
    assert answer["message"] == "音频文件上传成功: anna.wav"
    assert answer["count"] == len(answer["voices"]) == len(SHIPPED) + 1
    anna = next(voice for voice in answer["voices"] if voice["name"] == "anna")
    assert anna["type"] == "wav"
    assert Path(anna["file"]).name == "anna.wav"
    assert listed(client)["anna"]["transcript"] == WORDS
    # The same name again takes its place.
    del files["text_file"]
    again = client.post("/upload-audio", files=files, headers={"accept-language": "en"}).raise_for_status().json()
    assert again["message"] == "Voice uploaded: anna.wav"
    assert again["uploaded_txt_file"] is None
    assert listed(client)["anna"]["transcript"] is None

    poor = client.post("/upload-audio", files={"audio_file": ("x.wav", wav.encode(speech()[:9_000]))})
    assert poor.status_code == 422
    assert (poor.json()["success"], poor.json()["error"]["problems"][0]["code"]) == (False, "too_short")
    assert "秒" in poor.json()["message"]
    forced = client.post("/upload-audio?force=true", files={"audio_file": ("x.wav", wav.encode(speech()[:9_000]))})
    assert [warning["code"] for warning in forced.raise_for_status().json()["warnings"]] == ["too_short"]
    for files, param in (({"text_file": ("a.txt", b"x")}, "audio_file"), ({"audio_file": ("a.txt", b"")}, None)):
        assert client.post("/upload-audio", files=files).json()["error"]["param"] == (param or "audio_file")


def test_whether_a_voice_exists(client: httpx.Client) -> None:
    for name in ("belinda", "belinda.wav"):
        answer = client.get("/validate-ref-audio", params={"ref_audio": name}).raise_for_status().json()
        assert (answer["success"], answer["exists"]) == (True, True)
        assert answer["resolved_file"].endswith("examples/voice_prompts/belinda.wav")
    missing = client.get("/validate-ref-audio", params={"ref_audio": "nobody"}).raise_for_status().json()
    assert (missing["success"], missing["exists"], missing["resolved_file"]) == (True, False, None)
    assert missing["search_dir"].endswith("examples/voice_prompts")
    for wrong in ({"ref_audio": "/etc/passwd"}, {"ref_audio": "../x"}, {"ref_audio": ""}, {}):
        answer = client.get("/validate-ref-audio", params=wrong)
        assert (answer.status_code, answer.json()["success"]) == (422, False)


def test_an_uploaded_scene_is_a_scene(client: httpx.Client) -> None:
    for content in ("An attic.", "阁楼。"):
        files = {"scene_file": ("attic.txt", content.encode())}
        answer = client.post("/upload-scene", files=files).raise_for_status().json()
        assert (answer["success"], answer["uploaded_file"], answer["content"]) == (True, "attic.txt", content)
        assert answer["count"] == len(answer["scenes"])
        scenes = {scene["name"]: scene["content"] for scene in client.get("/scenes").json()["scenes"]}
        assert scenes["attic"] == content
    for data in (b"", b" \n", b"\xff\xfe\x00"):
        answer = client.post("/upload-scene", files={"scene_file": ("cellar.txt", data)})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "scene_file")


def test_profiles_as_other_servers_have_them(client: httpx.Client) -> None:
    before = client.get("/profiles").raise_for_status().json()
    assert before.keys() == {"success", "message", "profile", "profiles", "count"}
    assert before["count"] == len(before["profiles"]) > 5
    sent = {"name": "calm", "description": "A calm voice.", "characteristics": {"pitch": "low"}}
    created = client.post("/profiles", json=sent).raise_for_status().json()
    assert (created["success"], created["profile"], created["message"]) == (True, sent, "Profile 'calm' 创建成功")
    assert client.post("/profiles", json=sent).status_code == 409
    changed = client.put("/profiles/calm", json={"description": "Calmer."}).raise_for_status().json()
    assert changed["profile"]["description"] == "Calmer."
    assert client.put("/profiles/calm", json={}).raise_for_status().json()["profile"]["description"] == "Calmer."
    assert client.get("/profiles/calm").raise_for_status().json()["profile"]["description"] == "Calmer."
    assert client.get("/profiles").json()["count"] == before["count"] + 1
    assert client.delete("/profiles/calm").raise_for_status().json()["success"] is True
    for missing in (client.get, client.delete):
        answer = missing("/profiles/calm")
        assert (answer.status_code, answer.json()["success"]) == (404, False)
    assert client.put("/profiles/calm", json={"description": "x"}).status_code == 404
    assert client.post("/profiles", json={"name": "a/b", "description": "x"}).status_code == 422
    assert client.delete("/profiles/narrator").json()["error"]["code"] == "read_only"
    assert client.get("/profiles").json() == before


# --- spoken with ----------------------------------------------------------------------------------------------------


def test_the_embedded_voice_keeps_voices_but_says_that_it_cannot_speak_with_them(client: httpx.Client) -> None:
    keep(client, "anna").raise_for_status()
    for answer in (
        client.post("/generate", json={"text": "Hi.", "ref_audio": "anna"}),
        client.post("/v1/audio/speech", json={"input": "Hi.", "voice": "anna"}),
    ):
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]["code"] == "unsupported"
        assert "bosonai/higgs-audio-v2" in answer.text


class TestWithAModelThatClones:
    """A tiny random checkpoint: it speaks noise, but other noise for every voice."""

    BASE: dict[str, Any] = {"text": "Hello there.", "seed": 5, "max_new_tokens": 40}  # noqa: RUF012

    @pytest.fixture
    def server(self, native_server: ServerProcess) -> ServerProcess:
        return native_server

    def test_a_voice_is_used_by_the_next_request_and_gone_when_it_is_removed(self, client: httpx.Client) -> None:
        def speak(voice: str) -> httpx.Response:
            return client.post("/generate", json={**self.BASE, "ref_audio": voice})

        sounds = []
        assert speak("anna").status_code == 404
        keep(client, "anna", ref_text=WORDS).raise_for_status()
        sounds.append(generated_samples(speak("anna").raise_for_status().json()).tobytes())
        keep(client, "anna", wav.encode(speech()[:96_000]), "?replace=true").raise_for_status()
        sounds.append(generated_samples(speak("anna").raise_for_status().json()).tobytes())
        client.patch(f"{VOICES}/anna", json={"ref_text": "Other words."}).raise_for_status()
        sounds.append(generated_samples(speak("anna").raise_for_status().json()).tobytes())
        assert len(set(sounds)) == 3
        client.patch(f"{VOICES}/anna", json={"name": "Anna"}).raise_for_status()
        assert generated_samples(speak("Anna").raise_for_status().json()).tobytes() == sounds[-1]
        assert speak("anna").status_code == 404
        spoken = client.post("/v1/audio/speech", json={"input": "Hi.", "voice": "Anna", "max_new_tokens": 20})
        assert spoken.status_code == 200
        client.delete(f"{VOICES}/Anna").raise_for_status()
        gone = speak("Anna")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")

    def test_who_speaks_with_it_goes_on_when_it_is_removed(self, client: httpx.Client) -> None:
        keep(client, "anna", ref_text=WORDS).raise_for_status()
        text = " ".join(["One two three. Four five six."] * 4)
        asked = {**self.BASE, "text": text, "ref_audio": "anna", "chunk_method": "word", "chunk_max_word_num": 3}
        whole = generated_samples(client.post("/generate", json=asked).raise_for_status().json())
        with client.stream("POST", "/generate-stream", json=asked) as answer:
            lines = answer.iter_lines()
            first = next(line for line in lines if '"audio"' in line)
            with httpx.Client(base_url=client.base_url, timeout=60) as other:
                other.delete(f"{VOICES}/anna").raise_for_status()
                assert other.post("/generate", json=asked).status_code == 404
            found = [json.loads(first.removeprefix("data: ")), *events(lines)]
        assert [event["type"] for event in found[-2:]] == ["done", "[DONE]"]
        assert np.array_equal(streamed_samples(found), whole)

    def test_a_profile_and_a_scene_count_at_once(self, client: httpx.Client) -> None:
        client.post("/profiles", json={"name": "calm", "description": "A calm voice."}).raise_for_status()
        client.post("/upload-scene", files={"scene_file": ("attic.txt", b"An attic.")}).raise_for_status()
        asked = {**self.BASE, "ref_audio": "profile:calm", "scene_prompt": "attic"}
        client.post("/generate", json=asked).raise_for_status()
        client.delete("/profiles/calm").raise_for_status()
        assert client.post("/generate", json=asked).status_code == 404

"""The native API of a server that speaks: what it answers, and that stream and whole are the same sound."""

from __future__ import annotations

import base64
import socket
import time
from typing import Any

import httpx
import jsonschema_rs
import numpy as np
import pytest

from answers import events, generated_samples, streamed_samples, wav_samples
from server_process import ServerProcess

FEATURES = {"单说话人音频生成", "多说话人音频生成", "智能语音", "流式生成"}
SIX_SENTENCES = (
    "The ferry leaves at dawn. Nobody on the pier had slept. A gull stood on the rail and watched us. "
    "The engine coughed twice before it ran. We drank our coffee standing up. Then the harbour slid away."
)


def test_info_tells_what_is_loaded(client: httpx.Client) -> None:
    info = client.get("/info").raise_for_status().json()
    assert info["model_name"] == "embedded"
    assert info["device"] == "cpu"
    assert info["is_loaded"] is True
    assert info["max_new_tokens"] == 2048
    assert set(info["supported_features"]) == FEATURES
    assert "--model-path" in info["note"]
    assert "[laugh]" in info["note"]
    assert info["queue"].keys() == {"running", "waiting", "max_running", "max_waiting"}


def test_voices_and_scenes_are_listed_with_their_files(client: httpx.Client) -> None:
    voices = client.get("/voices").raise_for_status().json()
    assert voices["count"] == len(voices["voices"]) == 8
    belinda = next(voice for voice in voices["voices"] if voice["name"] == "belinda")
    assert belinda.pop("file").endswith("examples/voice_prompts/belinda.wav")
    assert belinda == {"name": "belinda", "type": "wav"}
    scenes = client.get("/scenes").raise_for_status().json()
    assert scenes["count"] == len(scenes["scenes"]) >= 5
    assert {"name", "content", "file"} <= set(scenes["scenes"][0])
    assert {"quiet_indoor", "reading_blog"} <= {scene["name"] for scene in scenes["scenes"]}


def test_generate_answers_a_whole_wav_and_all_about_it(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"text": "Good morning", "ref_audio": "belinda"}).raise_for_status().json()
    samples = generated_samples(answer)
    assert answer["success"] is True
    assert answer["message"] == "音频生成成功"
    assert answer["sampling_rate"] == 24_000
    assert answer["duration"] == pytest.approx(len(samples) / 24_000)
    assert answer["generated_text"] == "Good morning."
    assert answer["finish_reason"] == "stop"
    assert isinstance(answer["seed"], int)
    assert 0.4 < answer["duration"] < 5
    assert 1_000 < np.abs(samples).max() < 32_767


def test_messages_follow_accept_language(client: httpx.Client) -> None:
    english = {"Accept-Language": "en-GB,en;q=0.9,zh;q=0.5"}
    answer = client.post("/generate", json={"text": "Yes."}, headers=english).json()
    assert answer["message"] == "Audio generated"
    refused = client.post("/generate", json={"text": ""}, headers=english).json()["message"]
    assert refused.isascii()
    assert not client.post("/generate", json={"text": ""}).json()["message"].isascii()


def test_the_same_seed_gives_the_same_audio_and_is_returned(client: httpx.Client) -> None:
    body = {"text": "Twice the same.", "seed": 12_345}
    first, second = (client.post("/generate", json=body).raise_for_status().json() for _ in range(2))
    assert first["seed"] == second["seed"] == 12_345
    assert first["audio_base64"] == second["audio_base64"]


def test_the_joined_stream_is_the_whole_answer_and_sound_comes_early(client: httpx.Client) -> None:
    body = {"text": SIX_SENTENCES, "seed": 7}
    whole = client.post("/generate", json=body).raise_for_status().json()
    shares, found = [], []
    # The least of three: a busy machine can only make the first sound late, never early.
    for _ in range(3):
        share, found = stream_timed(client, body)
        shares.append(share)
    assert min(shares) < 0.35
    assert np.array_equal(streamed_samples(found), generated_samples(whole))
    audio = [event for event in found if event["type"] == "audio"]
    assert len(audio) >= 6
    assert [event["index"] for event in audio] == list(range(len(audio)))
    assert [event["type"] for event in found[-2:]] == ["done", "[DONE]"]
    done = {name: value for name, value in found[-2].items() if name != "type"}
    assert done == {name: value for name, value in whole.items() if name not in ("audio_base64", "format")}
    progress = [event["seconds"] for event in found if event["type"] == "progress"]
    assert progress == sorted(progress)
    assert progress[-1] == pytest.approx(whole["duration"], abs=0.001)


def stream_timed(client: httpx.Client, body: dict[str, Any]) -> tuple[float, list[dict[str, Any]]]:
    """The share of the whole time at which the first sound came, and all events."""
    started = time.perf_counter()
    first_audio = 0.0
    found = []
    with client.stream("POST", "/generate-stream", json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        for event in events(answer.iter_lines()):
            if event["type"] == "audio" and not first_audio:
                first_audio = time.perf_counter() - started
            found.append(event)
    return first_audio / (time.perf_counter() - started), found


def test_max_new_tokens_ends_the_speech(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"text": SIX_SENTENCES, "max_new_tokens": 25}).raise_for_status().json()
    assert answer["finish_reason"] == "length"
    assert answer["duration"] == pytest.approx(1.0, abs=0.05)


def test_upload_without_a_clip_speaks(client: httpx.Client) -> None:
    form = {"text": "Spoken from a form.", "temperature": "0.5", "seed": "3", "top_k": ""}
    answer = client.post("/generate-upload", files={"text": (None, form["text"])}, data=form).raise_for_status().json()
    assert answer["seed"] == 3
    assert len(generated_samples(answer))
    sound = client.post(
        "/generate-upload", data=form, files={"unused": (None, "x")}, headers={"Accept": "audio/wav"}
    ).raise_for_status()
    assert sound.headers["content-type"] == "audio/wav"
    assert np.array_equal(wav_samples(sound.content), generated_samples(answer))


def test_an_empty_field_of_a_form_counts_as_not_sent_as_the_document_says(client: httpx.Client) -> None:
    body = client.get("/openapi.json").json()["paths"]["/generate-upload"]["post"]["requestBody"]
    fields = body["content"]["multipart/form-data"]["schema"]["properties"]
    form = dict.fromkeys(fields, "") | {"text": "Hi."}
    jsonschema_rs.validate({"type": "object", "properties": fields}, form)
    sent = {name: (None, value) for name, value in (form | {"seed": "3"}).items()}
    found = client.post("/generate-upload", files=sent).raise_for_status().json()
    plain = client.post("/generate", json={"text": "Hi.", "seed": 3}).raise_for_status().json()
    assert found == plain


def test_what_the_embedded_voice_cannot_do_is_refused_with_the_way_out(client: httpx.Client) -> None:
    clip = client.post("/generate", json={"text": "A clip."}).json()
    files = {"ref_audio_file": ("clip.wav", base64.b64decode(clip["audio_base64"]))}
    answers = {
        "ref_audio_file": client.post("/generate-upload", data={"text": "Hi."}, files=files),
        "ref_audio": client.post("/generate", json={"text": "Hi.", "ref_audio": "profile:male_en_british"}),
        "scene_prompt": client.post("/generate", json={"text": "Hi.", "scene_prompt": "reading_blog"}),
    }
    for answer in answers.values():
        body = answer.json()
        assert answer.status_code == 422
        assert body["success"] is False
        assert body["error"]["code"] == "unsupported"
        assert "--model-path bosonai/higgs-audio-v2-generation-3B-base" in body["message"]
    assert answers["scene_prompt"].json()["error"]["param"] == "scene_prompt"
    for nothing in (None, "", "empty", "quiet_indoor"):
        assert client.post("/generate", json={"text": "Hi.", "scene_prompt": nothing}).status_code == 200


def test_two_speakers_take_turns(client: httpx.Client) -> None:
    text = "[SPEAKER0] Is it far?\n[SPEAKER1] Not at all."
    answer = client.post("/generate", json={"text": text, "ref_audio": "belinda,chadwick"}).raise_for_status().json()
    swapped = client.post("/generate", json={"text": text, "ref_audio": "chadwick,belinda"}).raise_for_status().json()
    assert answer["audio_base64"] != swapped["audio_base64"]


def test_a_client_that_leaves_stops_what_speaks_for_it(server: ServerProcess) -> None:
    # More than any machine speaks in a second: in pieces, for max_new_tokens ends each of them.
    body = {"text": " ".join([SIX_SENTENCES] * 200), "chunk_method": "word"}
    with (
        httpx.Client(base_url=server.url, timeout=120) as client,
        client.stream("POST", "/generate-stream", json=body, headers={"x-request-id": "leaver"}) as answer,
    ):
        next(events(answer.iter_lines()))
    server.wait_for(r"\[leaver\] higgs_server.access: POST /generate-stream")
    with httpx.Client(base_url=server.url) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/generate", json=body, headers={"x-request-id": "impatient"}, timeout=1)
    server.wait_for(r"\[impatient\] higgs_server.access: POST /generate (499|closed)", seconds=30)


def test_request_ids_are_returned_and_logged(client: httpx.Client, server: ServerProcess) -> None:
    assert client.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    server.wait_for(r"\[abc-1\] higgs_server.access: GET /health 200")
    odd = client.get("/health", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
    assert odd != "a b\tc"
    client.get("/x%0aforged%1b[31m", headers={"x-request-id": "abc-2"})
    server.wait_for(r"\[abc-2\] higgs_server.access: GET /x%0Aforged%1B%5B31m 404")


def test_users_texts_are_not_logged(client: httpx.Client, server: ServerProcess) -> None:
    client.post("/generate", json={"text": "Xylophone marmalade."}).raise_for_status()
    client.post("/generate", json={"text": "Xylophone.", "ref_audio": "nobody-of-that-name", "seed": "marmalade"})
    assert "ylophone" not in server.log
    assert "marmalade" not in server.log


def test_the_root_the_docs_and_the_openapi_document(client: httpx.Client) -> None:
    root = client.get("/").json()
    assert {"message", "version", "endpoints"} <= set(root)
    assert {"/generate", "/generate-stream", "/voices"} <= set(root["endpoints"])
    assert client.get("/docs").status_code == 200
    document = client.get("/openapi.json").json()
    body = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["temperature"]["default"] == 0.7
    assert {"401", "404", "413", "415", "422", "503"} <= set(document["paths"]["/generate"]["post"]["responses"])


def test_a_body_that_is_cut_off_is_no_error_of_the_server(server: ServerProcess) -> None:
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        head = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
        connection.sendall(f'{head}X-Request-Id: cut-off\r\n\r\n{{"text":'.encode())
    server.wait_for(r"\[cut-off\] higgs_server\.access: POST /generate closed .* cancelled")
    assert not [line for line in server.lines if "[cut-off]" in line and "ERROR" in line]

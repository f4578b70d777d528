"""Six formats on every transport: the same speech, whole, as it is made, and never another's.

Decoded by libsndfile, and by a browser, which most clients play sound in; AAC is read by the browser alone.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from answers import events, generated_samples, streamed_samples
from conversing import connected, say, sound
from decoders import CHROMIUM, RATE, Samples, adts_seconds, browser_page, decode, decode_in_browser
from ears import hear_english, word_error_rate
from higgs_server.audio.encoders import FORMATS
from server_process import ServerProcess

SENTENCE = "The ferry leaves at dawn, and nobody on the pier can sleep until tomorrow."
SLACK = 0.06
"""Seconds a decoded file may be longer than the speech: MP3 and ADTS streams cannot say what is padding."""
LOSSLESS = ("flac", "wav", "pcm")
every_format = pytest.mark.parametrize("form", FORMATS)


def speech(client: httpx.Client, form: str, text: str = SENTENCE, **fields: Any) -> httpx.Response:
    body = {"input": text, "voice": "belinda", "response_format": form, **fields}
    return client.post("/v1/audio/speech", json=body).raise_for_status()


def independently_decoded(data: bytes, form: str) -> Samples:
    if form != "aac":
        return decode(data, form)
    if CHROMIUM is None:
        pytest.skip("this machine has no browser to decode AAC with")
    assert abs(adts_seconds(data) - len(decode(data, form)) / RATE) < 0.001
    with browser_page() as page:
        return decode_in_browser(page, data)


def assert_same_speech(heard: Samples, spoken: Samples) -> None:
    """As long, and the same to its end: the last tenth of a second that sounds is there, as loud as it was."""
    assert 0 <= len(heard) - len(spoken) <= SLACK * RATE
    end = int(np.flatnonzero(np.abs(spoken) > 0.01)[-1])
    tail = spoken[end - RATE // 10 : end]
    fits = np.correlate(heard[end - RATE // 10 : end + round(SLACK * RATE)], tail, "valid")
    shift = int(np.argmax(fits))
    found = heard[end - RATE // 10 + shift :][: len(tail)]
    assert np.corrcoef(found, tail)[0, 1] > 0.9
    assert 0.7 < np.sqrt(np.mean(found**2) / np.mean(tail**2)) < 1.3


@every_format
def test_a_streamed_answer_has_every_word_to_its_end(client: httpx.Client, form: str) -> None:
    answer = speech(client, form)
    assert answer.headers["content-type"].startswith(FORMATS[form].content_type)
    assert "content-length" not in answer.headers
    if form == "wav":
        assert answer.content[4:8] == answer.content[40:44] == b"\xff\xff\xff\xff"
    if form == "mp3":
        assert b"Info" not in answer.content[:2_000]
        assert b"Xing" not in answer.content[:2_000]
    heard = independently_decoded(answer.content, form)
    assert_same_speech(heard, decode(speech(client, "pcm").content, "pcm"))
    words = hear_english(heard)
    assert word_error_rate(SENTENCE, words) <= 0.2
    assert "tomorrow" in words.lower()


@every_format
def test_a_whole_file_says_how_long_it_is(client: httpx.Client, form: str) -> None:
    body = {"text": SENTENCE, "ref_audio": "belinda", "response_format": form}
    answer = client.post("/generate", json=body).raise_for_status().json()
    assert answer["format"] == form
    data = base64.b64decode(answer["audio_base64"])
    spoken = decode(speech(client, "pcm").content, "pcm")
    assert answer["duration"] == pytest.approx(len(spoken) / RATE)
    assert_same_speech(independently_decoded(data, form), spoken)
    if form == "mp3":
        assert b"Info" in data[:200]  # the Xing frame, as it is called at a constant bit rate
        assert len(decode(data, form)) == len(spoken)
    elif form == "flac":
        assert int.from_bytes(data[21:26], "big") & (1 << 36) - 1 == len(spoken)
        assert data[26:42] != bytes(16)  # the MD5 of the samples
    elif form == "wav":
        assert int.from_bytes(data[4:8], "little") == len(data) - 8
        assert int.from_bytes(data[40:44], "little") == 2 * len(spoken)


def test_several_sentences_are_those_of_the_whole_answer(client: httpx.Client) -> None:
    text = f"{SENTENCE} A gull stood on the rail. It watched us."
    body = {"text": text, "ref_audio": "belinda", "chunk_method": "word"}
    assert (
        speech(client, "pcm", text).content == generated_samples(client.post("/generate", json=body).json()).tobytes()
    )


@pytest.mark.parametrize(
    ("accept", "asked", "form"),
    [
        ("audio/*", None, "wav"),
        ("audio/*", "flac", "flac"),
        ("audio/wav", None, "wav"),
        ("text/html, audio/mpeg;q=0.9", None, "mp3"),
        ("audio/ogg", None, "opus"),
        ("Audio/AAC", None, "aac"),
        ("audio/mpeg", "opus", "opus"),
        ("*/*", "mp3", None),
        ("application/json", "mp3", None),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/generate-upload"])
def test_accept_gives_the_file_itself(
    client: httpx.Client, path: str, accept: str, asked: str | None, form: str | None
) -> None:
    fields = {"text": "Yes.", "ref_audio": "belinda"} | ({"response_format": asked} if asked else {})
    # httpx sends a form as multipart only where it has a file: an empty one counts as not sent.
    sent: dict[str, Any] = (
        {"json": fields} if path == "/generate" else {"data": fields, "files": {"ref_audio_file": ("", b"")}}
    )
    answer = client.post(path, headers={"accept": accept}, **sent).raise_for_status()
    if form is None:
        assert answer.json()["format"] == asked
        return
    assert answer.headers["content-type"] == FORMATS[form].content_type
    assert answer.headers["x-finish-reason"] == "stop"
    assert len(decode(answer.content, form)) > 0.2 * RATE


def test_an_unknown_format_is_refused(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"text": "Yes.", "response_format": "midi"})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "response_format"
    assert "flac" in answer.json()["message"]


@pytest.mark.skipif(CHROMIUM is None, reason="this machine has no browser")
def test_a_browser_plays_what_is_streamed(client: httpx.Client) -> None:
    spoken = decode(speech(client, "pcm").content, "pcm")
    with browser_page() as page:
        for form in FORMATS.keys() - {"pcm"}:
            assert_same_speech(decode_in_browser(page, speech(client, form).content), spoken)


@every_format
def test_speed_changes_the_length_in_every_format(client: httpx.Client, form: str) -> None:
    usual = len(speech(client, "pcm").content) / 2
    for speed in (0.5, 2):
        samples = len(decode(speech(client, form, speed=speed).content, form))
        assert samples == pytest.approx(usual / speed, abs=2 * SLACK * RATE)


@every_format
def test_the_first_sound_leaves_while_the_rest_is_not_made_yet(
    server: ServerProcess, client: httpx.Client, form: str
) -> None:
    """Whoever stops listening after the first sound cancels work that is still to be done: hours of speech, here."""
    body = {"input": f"{SENTENCE} " * 1_000, "voice": "belinda", "response_format": form}
    request_id = f"first-sound-{form}"
    with client.stream("POST", "/v1/audio/speech", json=body, headers={"x-request-id": request_id}) as answer:
        received = 0
        for data in answer.iter_raw():
            received += len(data)
            if received > 10_000:
                break
    assert " cancelled " in server.wait_for(rf"{request_id}.* POST /v1/audio/speech")


def test_every_transport_and_format_has_the_same_samples(native_server: ServerProcess) -> None:
    """One seed on a model that draws, one utterance, asked for in every way there is."""
    text = "Hello there, this is a test."
    request = {"seed": 5, "max_new_tokens": 25}
    with httpx.Client(base_url=native_server.url, timeout=120) as client:

        def generated(form: str, **headers: str) -> httpx.Response:
            body = {"text": text, "response_format": form, **request}
            return client.post("/generate", json=body, headers=headers).raise_for_status()

        def spoken(form: str, **fields: Any) -> httpx.Response:
            return speech(client, form, text, voice=None, **request, **fields)

        def conversed(form: str) -> bytes:
            with connected(native_server.url) as socket:
                return sound(say(socket, text, response_format=form, **request))

        def heard_in_events(form: str) -> bytes:
            found = events(spoken(form, stream_format="sse").iter_lines())
            return b"".join(
                base64.b64decode(event["audio"]) for event in found if event["type"] == "speech.audio.delta"
            )

        ways: dict[str, Callable[[str], bytes]] = {
            "json": lambda form: base64.b64decode(generated(form).json()["audio_base64"]),
            "file": lambda form: generated(form, accept="audio/*").content,
            "body": lambda form: spoken(form).content,
            "events": heard_in_events,
            "socket": conversed,
        }
        decoded = {(form, way): decode(answer(form), form) for form in FORMATS for way, answer in ways.items()}
        with client.stream("POST", "/generate-stream", json={"text": text, **request}) as answer:
            reference = streamed_samples(events(answer.iter_lines()))
    assert len(reference) > 0.5 * RATE
    for (form, way), samples in decoded.items():
        if form in LOSSLESS:
            scale = 32767 if form == "pcm" else 32768
            assert np.array_equal(np.rint(samples * scale).astype(np.int16), reference), (form, way)
        else:
            same = decoded[form, "file" if way in ("json", "file") else "body"]  # whole, or streamed
            assert np.array_equal(samples, same), (form, way)
            assert 0 <= len(samples) - len(reference) <= SLACK * RATE


def test_twenty_streams_of_mixed_formats_do_not_mix(client: httpx.Client) -> None:
    """Twenty texts at once, each to the sample what it is when nobody else speaks."""
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    texts = [
        f"Count {number} and {other}." for number, other in zip(numbers * 2, numbers[3:] + numbers * 2, strict=False)
    ]
    jobs = [(text, list(FORMATS)[n % len(FORMATS)]) for n, text in enumerate(texts)]

    def run(job: tuple[str, str]) -> Samples:
        text, form = job
        return decode(speech(client, form, text).content, form)

    alone = [run(job) for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(run, jobs))
    assert len(set(jobs)) == len(jobs) == 20
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)

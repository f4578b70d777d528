"""Tries a running server from outside, as any client would: `python3 test_client.py --test all`.

Needs nothing but Python: knows the HTTP API and none of the server's code. Prints what it does, saves what it hears
as WAV files, and exits with 1 when something failed.
"""

from __future__ import annotations

import argparse
import array
import base64
import io
import json
import sys
import time
import urllib.error
import urllib.request
import uuid
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CAN_CLONE = "语音克隆"
ENGLISH = "Hello! This is a short test."
CHINESE = "你好，这是语音测试。"
DIALOGUE = "[SPEAKER0] Is it raining?\n[SPEAKER1] No, not any more."
LONG = "The kettle is on. The bread is warm. Come in and sit down."
CLIPS = Path(__file__).resolve().parent / "examples" / "voice_prompts"


class Failed(Exception):
    """A check did not hold, or the server cannot be reached; the message says which."""


class Unreachable(Failed):
    """Nobody answers at that address."""


class Client:
    """The server at `url`. Every call returns the status beside the body: errors are answers too."""

    def __init__(self, url: str, api_key: str | None, output: Path) -> None:
        self.url = url.rstrip("/")
        self.output = output
        self._headers = {"Accept-Language": "en"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def open(self, path: str, body: bytes | None = None, **headers: str) -> Any:
        """The open response, whatever its status. Raises Unreachable where there is no server."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, body, {**self._headers, **named})
        try:
            return urllib.request.urlopen(request, timeout=600)
        except urllib.error.HTTPError as error:
            return error
        except (urllib.error.URLError, OSError) as error:
            raise Unreachable(f"no answer from {self.url}: {getattr(error, 'reason', error)}") from None

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of a GET."""
        with self.open(path) as response:
            return response.status, json.load(response)

    def post(self, path: str, **fields: Any) -> tuple[int, Any]:
        """Status and JSON of a POST of JSON."""
        with self.open(path, json.dumps(fields).encode(), Content_Type="application/json") as response:
            return response.status, json.load(response)

    def upload(self, accept: str, clip: bytes | None = None, **fields: str) -> tuple[int, bytes]:
        """Status and body of `POST /generate-upload`."""
        edge = uuid.uuid4().hex
        parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
        if clip is not None:
            parts.append(b'name="ref_audio_file"; filename="clip.wav"\r\nContent-Type: audio/wav\r\n\r\n' + clip)
        head = f"--{edge}\r\nContent-Disposition: form-data; ".encode()
        body = b"".join(head + part + b"\r\n" for part in parts) + f"--{edge}--\r\n".encode()
        content_type = f"multipart/form-data; boundary={edge}"
        with self.open("/generate-upload", body, Content_Type=content_type, Accept=accept) as response:
            return response.status, response.read()

    def events(self, **fields: Any) -> Iterator[dict[str, Any]]:
        """The events of `POST /generate-stream`. Raises Failed where the stream does not end with [DONE]."""
        body = json.dumps(fields).encode()
        with self.open("/generate-stream", body, Content_Type="application/json") as response:
            if response.status != 200:
                raise Failed(f"status {response.status}: {response.read(2000).decode()}")
            for line in response:
                data = line.decode().removeprefix("data: ").strip()
                if data == "[DONE]":
                    return
                if data:
                    yield json.loads(data)
        raise Failed("the stream ended without [DONE]")

    def save(self, name: str, data: bytes) -> float:
        """Checks a WAV file, writes it and returns its length in seconds."""
        with wave.open(io.BytesIO(data)) as sound:
            form = (sound.getframerate(), sound.getnchannels(), sound.getsampwidth())
            samples = array.array("h", sound.readframes(sound.getnframes()))
        check(form == (24000, 1, 2), f"{name}: 24 kHz, mono, 16 bit expected, got {form}")
        check(len(samples) > 0 and max(map(abs, samples)) > 300, f"{name}: the sound is empty or silent")
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / name
        path.write_bytes(data)
        seconds = len(samples) / 24000
        print(f"  saved {path} ({seconds:.2f} s)")
        return seconds


def check(holds: object, message: str) -> None:
    """Raises Failed with the message where a check does not hold."""
    if not holds:
        raise Failed(message)


def speak(client: Client, name: str, **fields: Any) -> dict[str, Any]:
    """`POST /generate`, checked and saved as NAME. Returns the answer."""
    begin = time.monotonic()
    status, answer = client.post("/generate", **fields)
    check(status == 200 and answer["success"], f"status {status}: {answer.get('message')}")
    took = time.monotonic() - begin
    print(f"  spoke for {took:.2f} s: {answer['generated_text']!r}, seed {answer['seed']}, {answer['finish_reason']}")
    seconds = client.save(name, base64.b64decode(answer["audio_base64"]))
    check(abs(seconds - answer["duration"]) < 0.001, f"duration says {answer['duration']}, the file has {seconds}")
    return dict(answer)


def refused(status: int, body: Any, wanted: int, code: str) -> None:
    """An error is the status and the body that the README promises."""
    check(status == wanted, f"status {wanted} expected, got {status}: {body}")
    check(body["success"] is False and body["error"]["code"] == code, f"code {code!r} expected, got {body}")
    print(f"  refused as it should be: {status} {code}: {body['message']}")


def can_clone(client: Client) -> bool:
    """Whether the loaded model speaks with the voice of a clip."""
    return CAN_CLONE in client.get("/info")[1]["supported_features"]


def voice_names(client: Client) -> list[str]:
    """Names for `ref_audio`, those that every installation has first."""
    status, answer = client.get("/voices")
    check(status == 200 and answer["count"] > 0, f"no voices: status {status}, {answer}")
    names = [voice["name"] for voice in answer["voices"]]
    return sorted(names, key=lambda name: (name not in ("belinda", "chadwick"), name))


def basic(client: Client) -> None:
    """What the server is, speech in two languages, a repeated seed, and errors that say what is wrong."""
    for path in ("/health", "/info", "/voices", "/scenes"):
        status, answer = client.get(path)
        check(status == 200, f"{path}: status {status}: {answer}")
    info = client.get("/info")[1]
    print(f"  model {info['model_name']} on {info['device']}: {' '.join(info['supported_features'])}")
    speak(client, "basic_en.wav", text=ENGLISH)
    first = speak(client, "basic_zh.wav", text=CHINESE)
    again = speak(client, "basic_zh_again.wav", text=CHINESE, seed=first["seed"])
    check(first["audio_base64"] == again["audio_base64"], "the same seed gave other sound")
    print("  the same seed gave the same sound")
    refused(*client.post("/generate", text="  "), 422, "invalid_request")
    refused(*client.post("/generate", text="Hello.", ref_audio="nobody-of-that-name"), 404, "not_found")


def voice_clone(client: Client) -> None:
    """A voice by its name, then two voices in one dialogue."""
    if not can_clone(client):
        print("  this model cannot clone; it has voices of its own under these names")
    names = voice_names(client)
    speak(client, f"voice_{names[0]}.wav", text=ENGLISH, ref_audio=names[0])
    if len(names) > 1:
        speak(client, "voice_dialogue.wav", text=DIALOGUE, ref_audio=",".join(names[:2]))


def streaming(client: Client) -> None:
    """Sound arrives piece by piece, before all of it is made, and adds up to the whole."""
    begin = time.monotonic()
    first = 0.0
    pieces: list[bytes] = []
    done: dict[str, Any] = {}
    for event in client.events(text=LONG):
        check(event["type"] != "error", f"error event: {event}")
        if event["type"] == "audio":
            check(event["index"] == len(pieces), f"audio event {event['index']} where {len(pieces)} was due")
            first = first or time.monotonic() - begin
            pieces.append(base64.b64decode(event["audio_base64"]))
        elif event["type"] == "done":
            done = event
    print(f"  {len(pieces)} pieces, the first after {first:.2f} s, the last after {time.monotonic() - begin:.2f} s")
    check(done, "no done event")
    whole = io.BytesIO()
    with wave.open(whole, "wb") as sound:
        sound.setparams((1, 2, done["sampling_rate"], 0, "NONE", ""))
        sound.writeframes(b"".join(pieces))
    seconds = client.save("streaming.wav", whole.getvalue())
    check(abs(seconds - done["duration"]) < 0.001, f"duration says {done['duration']}, the pieces have {seconds}")


def upload(client: Client) -> None:
    """The voice of an uploaded clip; of a model that cannot clone, the refusal."""
    status, body = client.upload("audio/wav", text="Hello!")
    check(status == 200, f"without a clip: status {status}: {body[:2000].decode(errors='replace')}")
    client.save("upload_no_clip.wav", body)
    status, body = client.upload("application/json", b"this is no sound", text="Hello!")
    refused(status, json.loads(body), 415, "bad_audio")
    clip, transcript = reference_clip(client)
    status, body = client.upload("audio/wav", clip, text=ENGLISH, ref_text=transcript)
    if can_clone(client):
        check(status == 200, f"status {status}: {body[:2000].decode(errors='replace')}")
        client.save("upload.wav", body)
    else:
        print("  this model cannot clone, so an uploaded voice has to be refused:")
        refused(status, json.loads(body), 422, "unsupported")


def reference_clip(client: Client) -> tuple[bytes, str]:
    """A clip with its transcript: a shipped one, or where the script stands alone what the server says itself."""
    clip = CLIPS / "belinda.wav"
    if clip.is_file():
        return clip.read_bytes(), clip.with_suffix(".txt").read_text("utf-8").strip()
    answer = speak(client, "reference.wav", text=ENGLISH)
    return base64.b64decode(answer["audio_base64"]), ENGLISH


TESTS: dict[str, Callable[[Client], None]] = {
    "basic": basic,
    "voice-clone": voice_clone,
    "streaming": streaming,
    "upload": upload,
}


def wait_ready(client: Client, seconds: float) -> None:
    """Waits until a model can speak, with a line of progress.

    Raises Failed after `seconds`, and sooner where waiting is no use: nobody at that address for ten seconds, a wrong
    key, a model that could not be loaded.
    """
    begin = time.monotonic()
    shown = ""
    while True:
        waited = time.monotonic() - begin
        try:
            status, answer = client.get("/ready")
        except Unreachable as error:
            check(waited < 10, str(error))
            status, answer = 503, {"status": "starting", "message": f"{error}, trying again"}
        if status == 200:
            print(f"{client.url} is ready: {answer['model']}")
            return
        check(status == 503, f"/ready: status {status}: {answer.get('message')}")
        check(answer["status"] != "failed", f"no model: {answer['message']}")
        check(waited < seconds, f"not ready after {seconds:.0f} s: {answer['message']}")
        news = f"{answer['stage']} {answer['progress']:.0%}" if "stage" in answer else answer["message"]
        if news != shown:
            print(f"waiting for {client.url}: {news}", flush=True)
            shown = news
        time.sleep(0.5)


def main() -> int:
    """Runs the tests that are asked for; 0 where all passed."""
    parser = argparse.ArgumentParser(description="Tries a running higgs-audio-server and saves what it hears.")
    parser.add_argument("--test", choices=[*TESTS, "all"], default="all")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--output-dir", type=Path, default=Path("out"), help="where the WAV files go")
    parser.add_argument("--api-key", help="the server's --api-key")
    parser.add_argument("--wait", type=float, default=900, metavar="SECONDS", help="how long the model may load")
    options = parser.parse_args()
    if not options.url.startswith(("http://", "https://")):
        parser.error(f"--url: {options.url!r} does not begin with http:// or https://")
    client = Client(options.url, options.api_key, options.output_dir)
    failures = []
    try:
        wait_ready(client, options.wait)
    except Failed as error:
        print(f"FAILED: {error}")
        return 1
    for name, test in TESTS.items():
        if options.test not in (name, "all"):
            continue
        print(f"\n{name}: {test.__doc__}")
        try:
            test(client)
        except (Failed, KeyError, ValueError, EOFError, OSError, wave.Error) as error:
            failures.append(name)
            print(f"FAILED {name}: {error if isinstance(error, Failed) else repr(error)}")
        else:
            print(f"passed {name}")
    print(f"\nfailed: {', '.join(failures)}" if failures else "\nall passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

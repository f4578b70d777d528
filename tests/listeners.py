"""Many clients of one server at once, over every transport, who know what they have to hear.

What a request sounds like is asked once, while nobody else is there. From then on every answer is whole and the same to
the sample, or it is a refusal: anything else is collected in `unfinished` and `wrong`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from answers import events, generated_samples, streamed_samples
from higgs_server.audio.decode import decode

SAMPLES_A_SECOND = 24_000
REFUSED = {429, 503}
SECONDS = 120.0
"""Longer than any answer may take, with everybody else before it."""


class Refused(Exception):
    """503 or 429, as it may be."""


class Unfinished(Exception):
    """An answer that says itself that it is none: 5xx, an error event, a connection that was cut."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is asked, and what is heard."""

    text: str
    seed: int
    max_new_tokens: int
    voice: str | None = None

    @property
    def native(self) -> dict[str, Any]:
        """The body of `/generate`."""
        return {"text": self.text, "seed": self.seed, "max_new_tokens": self.max_new_tokens, "ref_audio": self.voice}

    @property
    def openai(self) -> dict[str, Any]:
        """The same for `/v1/audio/speech`."""
        return {**{k: v for k, v in self.native.items() if k not in ("text", "ref_audio")}, "voice": self.voice}


@dataclass(frozen=True, slots=True)
class Client:
    """Asks from one local address, over HTTP or otherwise."""

    http: httpx.AsyncClient
    address: str


@dataclass
class Listeners:
    """`sounds` holds a hash and a number of samples for each utterance."""

    url: str
    sounds: dict[Utterance, tuple[str, int]]
    heard: Counter[str] = field(default_factory=Counter)
    """Whole answers by transport."""
    refused: int = 0
    given_up: int = 0
    unfinished: list[str] = field(default_factory=list)
    """Answers that failed, and said so."""
    wrong: list[str] = field(default_factory=list)
    """Answers that claimed to be whole and were not, or were none at all."""

    @classmethod
    def taught(cls, url: str, utterances: Iterable[Utterance]) -> Listeners:
        """Asks for each utterance once."""
        sounds = {}
        with httpx.Client(base_url=url, timeout=SECONDS) as client:
            for utterance in utterances:
                answer = client.post("/generate", json=utterance.native).raise_for_status().json()
                sounds[utterance] = _fingerprint(generated_samples(answer))
        return cls(url, sounds)

    async def listen(self, number: int, until: float, patience: Callable[[], float | None]) -> int:
        """One client, asking until that time (monotonic). Gives how many answers it heard.

        Comes from an address of its own. `patience`: seconds after which it closes the connection.
        """
        choose = random.Random(number)
        address = f"127.0.1.{1 + number}"
        transport = httpx.AsyncHTTPTransport(local_address=address)
        count = 0
        async with httpx.AsyncClient(base_url=self.url, timeout=SECONDS, transport=transport) as http:
            client = Client(http, address)
            while time.monotonic() < until:
                utterance = choose.choice(list(self.sounds))
                way = choose.choice(list(WAYS))
                try:
                    async with asyncio.timeout(patience()):
                        await WAYS[way](self, client, utterance)
                    self.heard[way] += 1
                    count += 1
                except Refused:
                    self.refused += 1
                    await asyncio.sleep(choose.uniform(0.1, 1.0))
                except TimeoutError:
                    self.given_up += 1
                except (Unfinished, httpx.HTTPError, WebSocketException, OSError) as error:
                    self.unfinished.append(f"{way}: {type(error).__name__}: {error}")
                    await asyncio.sleep(0.1)
                except (AssertionError, LookupError, ValueError) as error:
                    self.wrong.append(f"{way}: {type(error).__name__}: {error}")
        return count

    def check(self, utterance: Utterance, samples: np.ndarray) -> None:
        """Raises AssertionError where that is not the utterance's sound."""
        expected = self.sounds[utterance]
        found = _fingerprint(samples)
        assert found == expected, f"{found[1]} samples instead of {expected[1]}, or others"


async def listen_all(listeners: Listeners, clients: int, seconds: float, impatient: float = 0.0) -> list[int]:
    """So many clients for so long, `impatient` of their requests (0 to 1) given up at some moment."""
    choose = random.Random(clients)

    def patience() -> float | None:
        return choose.uniform(0.0, 2.0) if choose.random() < impatient else None

    until = time.monotonic() + seconds
    return await asyncio.gather(*(listeners.listen(number, until, patience) for number in range(clients)))


# --- transports -----------------------------------------------------------------------------------------------------


def _must_be_ok(answer: httpx.Response) -> None:
    if answer.status_code in REFUSED:
        raise Refused
    if answer.status_code >= 500:
        raise Unfinished(f"{answer.status_code} {answer.text[:200]}")
    assert answer.status_code == 200, f"{answer.status_code} {answer.text[:200]}"


def _must_be_over(found: list[dict[str, Any]], last: str) -> None:
    if any(event["type"] == "error" for event in found):
        raise Unfinished(str(found[-1])[:200])
    assert found[-1]["type"] == last, found[-1]


async def _whole(self: Listeners, client: Client, utterance: Utterance) -> None:
    answer = await client.http.post("/generate", json=utterance.native)
    _must_be_ok(answer)
    self.check(utterance, generated_samples(answer.json()))


async def _events(self: Listeners, client: Client, utterance: Utterance) -> None:
    answer = await client.http.post("/generate-stream", json=utterance.native)
    _must_be_ok(answer)
    found = list(events(answer.text.splitlines()))
    _must_be_over(found, "[DONE]")
    assert found[-2]["type"] == "done"
    self.check(utterance, streamed_samples(found))


async def _pcm(self: Listeners, client: Client, utterance: Utterance) -> None:
    body = {**utterance.openai, "input": utterance.text, "response_format": "pcm"}
    answer = await client.http.post("/v1/audio/speech", json=body)
    _must_be_ok(answer)
    self.check(utterance, np.frombuffer(answer.content, "<i2"))


async def _speech_events(self: Listeners, client: Client, utterance: Utterance) -> None:
    body = {**utterance.openai, "input": utterance.text, "response_format": "pcm", "stream_format": "sse"}
    answer = await client.http.post("/v1/audio/speech", json=body)
    _must_be_ok(answer)
    found = list(events(answer.text.splitlines()))
    _must_be_over(found, "speech.audio.done")
    sound = b"".join(base64.b64decode(event["audio"]) for event in found[:-1])
    self.check(utterance, np.frombuffer(sound, "<i2"))


async def _mp3(self: Listeners, client: Client, utterance: Utterance) -> None:
    body = {**utterance.openai, "input": utterance.text, "response_format": "mp3"}
    answer = await client.http.post("/v1/audio/speech", json=body)
    _must_be_ok(answer)
    seconds = (await asyncio.to_thread(decode, answer.content)).duration
    expected = self.sounds[utterance][1] / SAMPLES_A_SECOND
    assert abs(seconds - expected) < 0.15, f"{seconds} s instead of {expected} s"


async def _websocket(self: Listeners, client: Client, utterance: Utterance) -> None:
    address = self.url.replace("http", "ws", 1) + "/v1/audio/speech/stream"
    async with connect(address, open_timeout=SECONDS, local_addr=(client.address, 0)) as socket:
        await socket.send(json.dumps({"type": "session.config", **utterance.openai}))
        await socket.send(json.dumps({"type": "input.text", "text": utterance.text}))
        await socket.send(json.dumps({"type": "input.done"}))
        sound = b""
        async for message in socket:
            if isinstance(message, bytes):
                sound += message
                continue
            event = json.loads(message)
            if event["type"] == "error" and event["code"] in ("overloaded", "rate_limit", "not_ready"):
                raise Refused
            if event["type"] == "error":
                raise Unfinished(str(event))
            if event["type"] == "session.done":
                break
        self.check(utterance, np.frombuffer(sound, "<i2"))


WAYS: dict[str, Callable[[Listeners, Client, Utterance], Awaitable[None]]] = {
    "generate": _whole,
    "generate-stream": _events,
    "pcm": _pcm,
    "sse": _speech_events,
    "mp3": _mp3,
    "websocket": _websocket,
}


def _fingerprint(samples: np.ndarray) -> tuple[str, int]:
    return hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest(), len(samples)

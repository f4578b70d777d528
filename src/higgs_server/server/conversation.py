"""Speech for voice agents: text arrives word by word over a WebSocket, each sentence is spoken once it is complete.

In: `session.config` (fields of `/v1/audio/speech`), `input.text`, `input.done`, `session.close`. Out: `audio.start`,
binary frames of the sound, `audio.done` for each sentence, `session.done`, `error`.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from itertools import pairwise
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError
from pydantic_core import from_json

from higgs_server.server.callers import Callers
from higgs_server.server.errors import as_speech_error, openai_error_body
from higgs_server.server.model import ServedModel
from higgs_server.server.openai import EncodedSpeech, SpeechBody, plan_speech
from higgs_server.server.streaming import speak
from higgs_server.settings import Settings
from higgs_server.telemetry import current_request
from higgs_server.text.chunk import count_words
from higgs_server.text.sentences import clause_ends, sentence_ends
from higgs_server.types import SAMPLING_RATE, InvalidRequest, NotReady, SpeechError, TooLarge, invalid_request

LONGEST_SENTENCE = 500
"""Characters without an end, half a minute of speech, after which what there is is spoken."""
_DEFAULTS = {"response_format": "pcm"}
_END = None
SERVICE_RESTART = 1012
"""The code of a WebSocket that closes because its server ends (IANA's registry)."""


class Conversation:
    """One session. Sentences are spoken one after another, in the order of their text, each as the session was
    configured when it was complete."""

    def __init__(self, socket: WebSocket, settings: Settings, model: ServedModel, callers: Callers) -> None:
        self._socket = socket
        self._callers = callers
        self._settings = settings
        self._model = model
        self._config = SpeechBody.model_validate({"input": "", **_DEFAULTS})
        self._unfinished = ""
        self._unspoken = 0
        """Characters, the unfinished ones included."""
        self._clips: deque[str | None] = deque()
        """Those of the sentences that wait."""
        self._complete = self._cut_short = False
        """Whether no more text is taken, and whether that is because the server ends."""
        self._sentences: asyncio.Queue[SpeechBody | None] = asyncio.Queue()

    async def run(self) -> None:
        """Until all is said, or the client closes or goes, and whatever is being spoken then stops. A server that ends
        takes no more text, and says what is complete."""
        await self._socket.accept()
        speaking = asyncio.ensure_future(self._speak_all())
        listening = asyncio.ensure_future(self._listen())
        stopping = asyncio.ensure_future(self._model.stopping.wait())
        try:
            await asyncio.wait({speaking, listening, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done() and not self._complete:
                self._cut_short = True
                self._end()
            await asyncio.wait({speaking, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (speaking, listening, stopping):
                task.cancel()
            await asyncio.gather(speaking, listening, stopping, return_exceptions=True)
            with suppress(RuntimeError, WebSocketDisconnect):
                await self._socket.close(SERVICE_RESTART if self._model.stopping.is_set() else 1000)

    async def _listen(self) -> None:
        """Reads messages until the client closes or goes."""
        while (received := await self._socket.receive())["type"] != "websocket.disconnect":
            try:
                message = _parse(received.get("text"))
                if message["type"] == "session.close":
                    return
                self._take(message)
            except SpeechError as error:
                await self._send_error(error)

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "session.config":
            self._configure(message)
        elif kind not in ("input.text", "input.done"):
            known = "session.config, input.text, input.done, session.close"
            raise InvalidRequest(f"No message has the type {kind[:50]!r}. There is: {known}.", param="type")
        elif self._cut_short:
            raise _ending()
        elif self._complete:
            raise InvalidRequest("input.done was the end of the text; say more in another session.", param="type")
        elif kind == "input.done":
            self._put(self._unfinished)
            self._end()
        else:
            self._add(message.get("text"))

    def _configure(self, message: dict[str, Any]) -> None:
        try:
            config = SpeechBody.model_validate_json(json.dumps({**_DEFAULTS, **message, "input": ""}))
        except ValidationError as error:
            raise invalid_request(error.errors(include_input=False)[0]) from None
        if config.ref_audio == self._config.ref_audio:
            config = config.model_copy(update={"ref_audio": self._config.ref_audio})
        held = {id(clip): len(clip) for clip in (*self._clips, config.ref_audio) if clip}
        if len(held) > 1 and sum(held.values()) > self._settings.max_upload_mb * 2**20:
            raise TooLarge("Sentences with other clips wait to be spoken. Send this later.", param="ref_audio")
        self._config = config

    def _add(self, text: object) -> None:
        if not isinstance(text, str):
            raise InvalidRequest("text: a string is due.", param="text")
        most = self._settings.max_text_length
        if self._unspoken + len(text) > most:
            raise TooLarge(f"More than {most} characters wait to be spoken. Send this again later.", param="text")
        self._unspoken += len(text)
        text = self._unfinished + text
        # Where a sentence ends shows in what follows it: "Dr. " does not end here, "Hello. " and "你好。" do.
        ends = [end for end in sentence_ends(f"{text}Next") if end <= len(text)]
        if not ends and len(text) > LONGEST_SENTENCE:
            ends = clause_ends(text)[-1:] or [text.rfind(" ") + 1 or len(text)]
        for start, end in pairwise([0, *ends]):
            self._put(text[start:end])
        self._unfinished = text[ends[-1] :] if ends else text

    def _end(self) -> None:
        self._complete = True
        self._sentences.put_nowait(_END)

    def _put(self, sentence: str) -> None:
        self._clips.append(self._config.ref_audio)
        self._sentences.put_nowait(self._config.model_copy(update={"input": sentence}))

    async def _speak_all(self) -> None:
        index = 0
        while (sentence := await self._sentences.get()) is not _END:
            self._unspoken -= len(sentence.input)
            self._clips.popleft()
            # Quotes, emoji and white space between sentences.
            if not count_words(sentence.input):
                continue
            with _recorded(index):
                try:
                    await self._speak(sentence, index)
                except (WebSocketDisconnect, asyncio.CancelledError):
                    raise
                except Exception as error:
                    await self._send_error(as_speech_error(error), sentence_index=index)
            index += 1
        if self._cut_short:
            await self._send_error(_ending())
        else:
            await self._send({"type": "session.done"})

    async def _speak(self, sentence: SpeechBody, index: int) -> None:
        self._callers.count(current_request.get().caller)
        script = await self._model.plan(plan_speech, sentence, self._model.get(), self._settings)
        start = {
            "format": sentence.response_format,
            "sample_rate": SAMPLING_RATE,
            "sentence_text": sentence.input.strip(),
        }
        await self._send({"type": "audio.start", "sentence_index": index, **start})
        spoken = EncodedSpeech(speak(self._model, script), sentence)
        async with aclosing(spoken.stream()) as sound:  # type: ignore[type-var]
            async for data in sound:
                await self._socket.send_bytes(data)
        await self._send({"type": "audio.done", "sentence_index": index})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._socket.send_text(json.dumps(message, ensure_ascii=False))

    async def _send_error(self, error: SpeechError, **about: int) -> None:
        await self._send({**openai_error_body(error)["error"], **about, "type": "error"})


def _ending() -> NotReady:
    return NotReady("The server is about to end; say what was not spoken in another session.")


def _parse(text: str | None) -> dict[str, Any]:
    """A message. Raises InvalidRequest for what is none; a binary one has no text."""
    try:
        message = from_json(text or "")
    except ValueError:
        raise InvalidRequest("A message is a JSON object, sent as text.", code="malformed_body") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise InvalidRequest("A message is a JSON object with a type.", param="type")
    return message


@contextmanager
def _recorded(index: int) -> Iterator[None]:
    """A sentence is a request of its own to the log, the queue and the metrics; its clock starts with its turn."""
    record = current_request.get().part(index)
    token = current_request.set(record)
    try:
        yield
        record.complete = True
        record.status = record.error.status if record.error else 200
    finally:
        current_request.reset(token)
        record.end()


def routes(settings: Settings, model: ServedModel, callers: Callers) -> APIRouter:
    """The router of the WebSocket."""
    router = APIRouter()

    @router.websocket("/v1/audio/speech/stream")
    async def stream(socket: WebSocket) -> None:
        """Text in as it is written, sound out sentence by sentence."""
        await Conversation(socket, settings, model, callers).run()

    return router

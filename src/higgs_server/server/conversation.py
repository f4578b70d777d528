"""Speech for voice agents: text arrives word by word over a WebSocket, each sentence is spoken once it is complete.

In: `session.config` (fields of `/v1/audio/speech`), `input.text`, `input.done`, `session.close`. Out: `audio.start`,
binary frames of the sound, `audio.done` for each sentence, `session.done`, `error`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from itertools import pairwise
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError
from pydantic_core import from_json

from higgs_server.server.errors import as_speech_error, openai_error_body
from higgs_server.server.model import ServedModel
from higgs_server.server.openai import EncodedSpeech, SpeechBody, plan_speech
from higgs_server.server.streaming import speak
from higgs_server.settings import Settings
from higgs_server.telemetry import current_request
from higgs_server.text.sentences import sentence_ends
from higgs_server.types import SAMPLING_RATE, InvalidRequest, SpeechError, TooLarge, invalid_request

_END = None


class Conversation:
    """One session. Sentences are spoken one after another, in the order of their text."""

    def __init__(self, socket: WebSocket, settings: Settings, model: ServedModel) -> None:
        self._socket = socket
        self._settings = settings
        self._model = model
        self._config: dict[str, Any] = {"response_format": "pcm"}
        self._unfinished = ""
        self._sentences: asyncio.Queue[str | None] = asyncio.Queue()

    async def run(self) -> None:
        """Until the client is done, closes or goes; whatever is being spoken then stops."""
        await self._socket.accept()
        speaking = asyncio.ensure_future(self._speak_all())
        listening = asyncio.ensure_future(self._listen())
        try:
            await asyncio.wait({speaking, listening}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done() and not listening.exception() and listening.result():
                await speaking
        finally:
            for task in (speaking, listening):
                task.cancel()
            await asyncio.gather(speaking, listening, return_exceptions=True)
            with suppress(RuntimeError):
                await self._socket.close()

    async def _listen(self) -> bool:
        """Reads messages. True once all text has come, False if the client wants or has to end here."""
        try:
            while True:
                try:
                    message = self._parse(await self._socket.receive_text())
                    if message["type"] == "session.close":
                        return False
                    if self._take(message):
                        return True
                except SpeechError as error:
                    await self._send_error(error)
        except (WebSocketDisconnect, KeyError):  # KeyError: bytes where text is due
            return False

    @staticmethod
    def _parse(text: str) -> dict[str, Any]:
        try:
            message = from_json(text)  # as strict about characters as the parser of HTTP's bodies
        except ValueError:
            raise InvalidRequest("A message is a JSON object.", code="malformed_body") from None
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise InvalidRequest("A message is a JSON object with a type.", param="type")
        return message

    def _take(self, message: dict[str, Any]) -> bool:
        kind = message["type"]
        if kind == "session.config":
            config = {"response_format": "pcm"} | {k: v for k, v in message.items() if k not in ("type", "input")}
            try:
                SpeechBody(input="-", **config)
            except ValidationError as error:
                raise invalid_request(error.errors(include_input=False)[0]) from None
            self._config = config
        elif kind == "input.text":
            text = message.get("text")
            if not isinstance(text, str):
                raise InvalidRequest("text: a string is due.", param="text")
            if len(self._unfinished) + len(text) > self._settings.max_text_length:
                raise TooLarge(f"A sentence has more than {self._settings.max_text_length} characters.", param="text")
            text = self._unfinished + text
            # Where a sentence ends shows in what follows it: "Dr. " does not end here, "Hello. " and "你好。" do.
            ends = [end for end in sentence_ends(f"{text}Next") if end <= len(text)]
            for start, end in pairwise([0, *ends]):
                self._sentences.put_nowait(text[start:end])
            self._unfinished = text[ends[-1] :] if ends else text
        elif kind == "input.done":
            self._sentences.put_nowait(self._unfinished)
            self._sentences.put_nowait(_END)
            return True
        else:
            known = "session.config, input.text, input.done, session.close"
            raise InvalidRequest(f"No message has the type {kind[:50]!r}. There is: {known}.", param="type")
        return False

    async def _speak_all(self) -> None:
        index = 0
        while (sentence := await self._sentences.get()) is not _END:
            if not sentence.strip():
                continue
            with _recorded(index):
                try:
                    await self._speak(sentence.strip(), index)
                except (WebSocketDisconnect, asyncio.CancelledError):
                    raise
                except Exception as error:
                    await self._send_error(as_speech_error(error))
            index += 1
        await self._send({"type": "session.done"})

    async def _speak(self, sentence: str, index: int) -> None:
        body = SpeechBody(input=sentence, **self._config)
        script = await asyncio.to_thread(plan_speech, body, self._model.get(), self._settings)
        start = {"format": body.response_format, "sample_rate": SAMPLING_RATE, "sentence_text": sentence}
        await self._send({"type": "audio.start", "sentence_index": index, **start})
        async with aclosing(EncodedSpeech(speak(self._model, script), body).stream()) as sound:  # type: ignore[type-var]
            async for data in sound:
                await self._socket.send_bytes(data)
        await self._send({"type": "audio.done", "sentence_index": index})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._socket.send_text(json.dumps(message, ensure_ascii=False))

    async def _send_error(self, error: SpeechError) -> None:
        await self._send({**openai_error_body(error)["error"], "type": "error"})


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


def routes(settings: Settings, model: ServedModel) -> APIRouter:
    """The router of the WebSocket."""
    router = APIRouter()

    @router.websocket("/v1/audio/speech/stream")
    async def stream(socket: WebSocket) -> None:
        """Text in as it is written, sound out sentence by sentence."""
        await Conversation(socket, settings, model).run()

    return router

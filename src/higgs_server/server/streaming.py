"""The bridge between a generator in a thread and a client on the event loop.

One path for every endpoint: AudioChunks come out in order, a client that goes away cancels what speaks for it, and a
slow client holds its own generator back (a few chunks at most wait here).
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, ParamSpec, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from higgs_server.server.admission import before_deadline
from higgs_server.server.model import SPEAKING, ServedModel
from higgs_server.telemetry import current_request
from higgs_server.types import AudioChunk, Cancellation, Cancelled, Script

_WAITING_CHUNKS = 8
_END = object()
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class ClientGone(Exception):
    """Nobody is there to answer."""


async def plan(
    request: Request,
    model: ServedModel,
    call: Callable[Arguments, Result],
    *arguments: Arguments.args,
    **options: Arguments.kwargs,
) -> Result:
    """What `model.plan` gives. Raises ClientGone, and gives it up, when the client closes the connection first."""
    return await _while_connected(request, model.plan(call, *arguments, **options))


async def speak(model: ServedModel, script: Script) -> AsyncIterator[AudioChunk]:
    """Waits for its turn, then performs the script in a thread of its own. Closing the iterator gives both up.

    Raises Overloaded, DeadlineExceeded, NotReady, and what the backend raises.
    """
    record = current_request.get()
    async with model.admission.turn(record) as record.queued:
        synthesizer = model.get()
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[object] = asyncio.Queue()
        room = threading.Semaphore(_WAITING_CHUNKS)
        cancellation = Cancellation()
        cancellation.on_cancel(room.release)

        def put(item: object) -> None:
            # A loop that is closed has no client left.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def perform() -> None:
            started = time.perf_counter()
            try:
                for piece in synthesizer.perform(script, cancellation):
                    record.generating += time.perf_counter() - started
                    put(piece)
                    room.acquire()
                    if cancellation.cancelled:
                        return
                    started = time.perf_counter()
                put(_END)
            except Cancelled:
                put(ClientGone())
            except Exception as error:
                put(error)

        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(perform,), name=SPEAKING, daemon=True).start()
        try:
            while True:
                async with before_deadline(record):
                    item = await queue.get()
                if item is _END:
                    return
                room.release()
                if isinstance(item, Exception):
                    raise item
                assert isinstance(item, AudioChunk)
                record.hear(item)
                yield item
        finally:
            cancellation.cancel()


async def speak_whole(request: Request, model: ServedModel, script: Script) -> list[AudioChunk]:
    """All chunks of a script. Raises ClientGone, and stops the work, when the client closes the connection."""

    async def collect() -> list[AudioChunk]:
        async with aclosing(speak(model, script)) as pieces:  # type: ignore[type-var]
            return [piece async for piece in pieces]

    return await _while_connected(request, collect())


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


class FirstThenRest:
    """Chunks of which the `first` have come already. Closing it stops the work, begun or not."""

    def __init__(self, first: list[AudioChunk], rest: AsyncIterator[AudioChunk]) -> None:
        self._first = deque(first)
        self._rest = rest

    def __aiter__(self) -> FirstThenRest:
        return self

    async def __anext__(self) -> AudioChunk:
        return self._first.popleft() if self._first else await anext(self._rest)

    async def aclose(self) -> None:
        """Idempotent."""
        await self._rest.aclose()  # type: ignore[attr-defined]


async def first_then_rest(pieces: AsyncIterator[AudioChunk], request: Request) -> FirstThenRest:
    """Waits for the first sound, so that a failure before it still has an HTTP status.

    Raises ClientGone, and stops the work, where the client closes the connection meanwhile: a queue and a long prompt
    can lie before the first sound, and no response listens yet.
    """

    async def begin() -> list[AudioChunk]:
        first: list[AudioChunk] = []
        async for piece in pieces:
            first.append(piece)
            if len(piece.samples):
                break
        return first

    return FirstThenRest(await _while_connected(request, begin()), pieces)


class SpokenResponse(StreamingResponse):
    """A response made of chunks; stops their making however it ends: sent, failed, or not wanted any more."""

    def __init__(self, content: AsyncIterator[bytes], pieces: FirstThenRest, **options: Any) -> None:
        """`options` are those of StreamingResponse."""
        super().__init__(content, **options)
        self._content = content
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # A generator that never began has nothing to close, what it would have read has.
            await self._content.aclose()  # type: ignore[attr-defined]
            await self._pieces.aclose()


async def _while_connected(request: Request, coroutine: Coroutine[Any, Any, Result]) -> Result:
    """What the coroutine returns. Raises ClientGone, and cancels it, when the client closes the connection first."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.ensure_future(disconnected())
    await asyncio.sleep(0)
    if gone.done():  # it left during what came before
        coroutine.close()
        raise ClientGone
    work = asyncio.ensure_future(coroutine)
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientGone
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)

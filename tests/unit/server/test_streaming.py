"""What a client that goes away stops, before there is a response that could notice it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from fastapi import Request
from starlette.types import Message

from higgs_server.server.streaming import ClientGone, first_then_rest
from higgs_server.types import AudioChunk

PIECES = [AudioChunk(np.full(3, number, np.float32)) for number in range(3)]


def request_of(*, gone: bool, at_once: bool = False) -> Request:
    async def receive() -> Message:
        if not gone:
            await asyncio.Event().wait()
        for _ in range(0 if at_once else 5):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


def test_a_client_that_goes_before_the_first_chunk_stops_the_work() -> None:
    stopped = []

    async def never() -> AsyncIterator[AudioChunk]:
        try:
            await asyncio.Event().wait()
            yield PIECES[0]
        finally:
            stopped.append(True)

    async def wait() -> None:
        with pytest.raises(ClientGone):
            await first_then_rest(never(), request_of(gone=True))
        assert stopped

    asyncio.run(wait())


def test_for_a_client_that_has_gone_already_nothing_begins() -> None:
    begun = []

    async def eager() -> AsyncIterator[AudioChunk]:
        begun.append(True)
        yield PIECES[0]

    async def wait() -> None:
        with pytest.raises(ClientGone):
            await first_then_rest(eager(), request_of(gone=True, at_once=True))
        assert not begun

    asyncio.run(wait())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_client_that_stays_hears_all_of_it(count: int) -> None:
    async def some() -> AsyncIterator[AudioChunk]:
        for piece in PIECES[:count]:
            yield piece

    async def listen() -> list[AudioChunk]:
        return [piece async for piece in await first_then_rest(some(), request_of(gone=False))]

    assert asyncio.run(listen()) == PIECES[:count]

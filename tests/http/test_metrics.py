"""`/metrics` counts what really happened, in a form Prometheus reads, with few label values whatever clients send."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx
import pytest

from higgs_server.server.app import create_app
from higgs_server.settings import Settings
from metrics_of import Scrape, metrics_of
from server_process import ServerProcess


@pytest.fixture
def scrape(server: ServerProcess) -> Callable[[], Scrape]:
    return lambda: metrics_of(server.url)


@pytest.fixture(scope="module", params=["embedded_server", "native_server", "quantised_server"])
def server(request: pytest.FixtureRequest) -> ServerProcess:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def test_what_a_request_was_is_counted(client: httpx.Client, scrape: Callable[[], Scrape]) -> None:
    before = scrape()
    body = {"text": "Good morning.", "seed": 3, "max_new_tokens": 60}
    answers = [client.post("/generate", json=body).raise_for_status().json() for _ in range(2)]
    client.post("/generate", json={**body, "ref_audio": "nobody"})
    client.get("/no/such/page")
    after = scrape()

    def grown(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert grown("higgs_requests_total", endpoint="/generate", status="200", outcome="ok") == 2
    assert grown("higgs_requests_total", endpoint="/generate", status="404", outcome="not_found") == 1
    assert grown("higgs_requests_total", endpoint="other", status="404") == 1
    assert grown("higgs_rejects_total", reason="not_found") == 2
    assert grown("higgs_request_seconds_count", endpoint="/generate") == 3
    assert grown("higgs_first_audio_seconds_count", endpoint="/generate") == 2
    assert grown("higgs_real_time_factor_count") == 2
    assert grown("higgs_finish_reasons_total", reason=answers[0]["finish_reason"]) == 2
    assert grown("higgs_audio_seconds_total") == pytest.approx(sum(answer["duration"] for answer in answers))
    assert 0 < grown("higgs_first_audio_seconds_sum") <= grown("higgs_request_seconds_sum", endpoint="/generate")
    assert after("higgs_ready") == 1
    assert after("higgs_model_info") == 1
    assert after("process_resident_memory_bytes") > 50e6


def test_the_engine_is_seen_where_there_is_one(
    client: httpx.Client, scrape: Callable[[], Scrape], server: ServerProcess
) -> None:
    before = scrape()
    if "embedded" in server.arguments:
        assert not any(name.startswith("higgs_slots") for name, _ in before.samples)
        assert "higgs_slots" in before.types
        return
    body = {"text": "Good morning.", "seed": 3, "max_new_tokens": 30, "ref_audio": "belinda"}
    for _ in range(2):
        client.post("/generate", json=body).raise_for_status()
    after = scrape()
    steps = after("higgs_decode_step_seconds_count") - before("higgs_decode_step_seconds_count")
    assert steps > 10
    assert after("higgs_decode_batch_size_count") == after("higgs_decode_step_seconds_count")
    assert after("higgs_decode_batch_size_sum") >= after("higgs_decode_batch_size_count")
    assert after("higgs_decode_step_seconds_bucket", le="+Inf") == after("higgs_decode_step_seconds_count")
    assert after("higgs_decode_step_seconds_sum") > 0
    assert after("higgs_frames_total") > before("higgs_frames_total")
    assert after("higgs_prefix_cache_hits_total") > before("higgs_prefix_cache_hits_total")
    assert after("higgs_clip_cache_hits_total") > before("higgs_clip_cache_hits_total")
    assert after("higgs_clip_cache_misses_total") >= 1
    assert after("higgs_prefix_cache_bytes") > 0
    assert after("higgs_slots") > after("higgs_slots_used") == 0


def test_a_client_that_goes_away_is_counted(client: httpx.Client, scrape: Callable[[], Scrape]) -> None:
    before = scrape()
    # In pieces: noise of a tiny model may end at once, forty times hardly.
    body = {"text": "One sentence, and then another one. " * 40, "chunk_method": "word", "chunk_max_word_num": 6}
    with client.stream("POST", "/generate-stream", json=body) as answer:
        next(answer.iter_raw())
    until = time.monotonic() + 60
    while (after := scrape())("higgs_cancels_total") == before("higgs_cancels_total"):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert after("higgs_cancels_total") == before("higgs_cancels_total") + 1
    assert after("higgs_requests_total", endpoint="/generate-stream", outcome="cancelled") == (
        before("higgs_requests_total", endpoint="/generate-stream", outcome="cancelled") + 1
    )


def test_labels_stay_few_whatever_clients_send(client: httpx.Client, scrape: Callable[[], Scrape]) -> None:
    client.get("/warm-up")
    before = scrape()
    for n in range(20):
        client.get(f"/no/such/page/{n}")
        client.request(f"METHOD{n}", "/generate")
        client.post("/generate", json={"text": f"x{n}", "ref_audio": f"nobody{n}"}, headers={"x-request-id": f"id{n}"})
        client.get(f"/voices?x={n}")
    added = scrape().samples.keys() - before.samples.keys()
    # The 404s of a page, of a voice and of a method's route, and what was asked for the first time.
    assert len([name for name, _ in added if name == "higgs_requests_total"]) <= 4, added


def test_openmetrics_where_it_is_asked_for(client: httpx.Client) -> None:
    plain = client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    answer = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_two_applications_in_one_process_do_not_share_numbers() -> None:
    async def served(app: object, path: str) -> str:
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return (await client.get(path)).text

    first, second = create_app(Settings()), create_app(Settings())
    asyncio.run(served(first, "/voices"))
    seen, unseen = (Scrape(asyncio.run(served(app, "/metrics"))) for app in (first, second))
    assert seen("higgs_requests_total", endpoint="/voices") == 1
    assert unseen("higgs_requests_total") == 0

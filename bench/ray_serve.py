"""What Ray Serve gives and takes: sound a second of two replicas against one, and the router's part of the first sound.

    python bench/ray_serve.py

The model is simulated (bench/simulated.py: a step takes 20 ms whatever runs beside it), so replicas do not fight over
this machine's cores. Prints medians; a busy machine makes them worse.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path

import httpx

HERE = Path(__file__).resolve().parent
FRAMES, SLOTS, CLIENTS, SECONDS, FIRSTS = 50, 4, 24, 15.0, 100


def first_sound(client: httpx.Client) -> float:
    """Milliseconds from the request to its first sound."""
    started = time.perf_counter()
    with client.stream("POST", "/generate-stream", json={"text": "1", "scene_prompt": None}) as answer:
        for line in answer.iter_lines():
            if '"audio"' in line:
                return 1000 * (time.perf_counter() - started)
    raise RuntimeError("no sound")


async def sound_a_second(url: str) -> float:
    """Audio-seconds a second that many clients get, after a warm-up."""
    heard: list[float] = []

    async def ask(client: httpx.AsyncClient) -> None:
        while True:
            body = {"text": str(FRAMES), "scene_prompt": None}
            answer = (await client.post("/generate", json=body)).raise_for_status().json()
            heard.append(answer["duration"])

    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        tasks = [asyncio.ensure_future(ask(client)) for _ in range(CLIENTS)]
        await asyncio.sleep(4)
        before, started = len(heard), time.perf_counter()
        await asyncio.sleep(SECONDS)
        rate = sum(heard[before:]) / (time.perf_counter() - started)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return rate


def main() -> None:
    """Measures and prints."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
    }
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent / "src"), str(HERE), os.environ.get("PYTHONPATH", "")])
    sys.path[:0] = [str(HERE.parent / "src"), str(HERE)]
    import uvicorn
    from simulated import simulate

    import ray
    from higgs_server.deploy.ray_serve import Replica, deployment
    from higgs_server.server.app import create_app
    from higgs_server.settings import Settings
    from ray import serve

    class Simulated(Replica):
        def __init__(self, settings: Settings) -> None:
            simulate()
            super().__init__(settings)

    settings = Settings(model_path="embedded", max_running=SLOTS, max_waiting=1000, log_file=None, log_level="WARNING")
    ray.init(num_cpus=8, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": 8123})
    through = "http://127.0.0.1:8123"
    rates = {}
    for replicas in (1, 2):
        wanted = deployment(settings, Simulated).options(num_replicas=replicas, autoscaling_config=None)
        serve.run(wanted.bind(settings))
        rates[replicas] = asyncio.run(sound_a_second(through))
        print(f"{replicas} replica(s): {rates[replicas]:.1f} audio-seconds a second", flush=True)
    print(f"two against one: {rates[2] / rates[1]:.2f} x", flush=True)

    simulate()
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=8124, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    with httpx.Client(base_url="http://127.0.0.1:8124") as plain, httpx.Client(base_url=through) as routed:
        while not server.started or plain.get("/ready").status_code != 200:
            time.sleep(0.05)
        pairs = [(first_sound(plain), first_sound(routed)) for _ in range(FIRSTS)]
    one, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(json.dumps({"first_sound_ms": round(one, 1), "through_ray_serve_ms": round(other, 1)}))
    print(f"router: {other - one:.1f} ms of the first sound, median of {FIRSTS}", flush=True)
    server.should_exit = True
    thread.join()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()

"""A Ray cluster of two nodes on this machine, with the server's replicas on it, in a process of its own.

    python tests/ray_cluster.py REPLICAS [setting=value …]

Says `ready URL ADDRESS` once it serves. Then a line on standard input is a command, answered with a line `done …`:
`replicas N` (waits until they run), `kill-replica` (SIGKILL to one), `kill-node` (the second one, whatever is on it).
It ends with its input.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300.0
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DEDUP_LOGS": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
    "RAY_worker_niceness": "0",
    "PYTHONWARNINGS": "ignore",
}
_NODE: dict[str, Any] = {"num_cpus": 4, "object_store_memory": 100_000_000, "include_dashboard": False}


class RayCluster:
    """The process, from a test. `url` is where its first node's proxy listens, `address` is the cluster's."""

    def __init__(self, replicas: int, *settings: str) -> None:
        self.settings = dict(setting.split("=", 1) for setting in settings)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(replicas), *settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_QUIET, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self.url = self.address = ""

    def __enter__(self) -> RayCluster:
        self.url, self.address = self._wait_for("ready").split()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()

    def command(self, line: str) -> str:
        """Sends a command and waits until it is done; returns what the answer says."""
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._wait_for("done")

    def _wait_for(self, word: str) -> str:
        assert self._process.stdout
        watchdog = threading.Timer(SECONDS, os.killpg, (self._process.pid, signal.SIGKILL))
        watchdog.start()
        try:
            for line in self._process.stdout:
                if line.startswith(f"{word} "):
                    return line.removeprefix(word).strip()
        finally:
            watchdog.cancel()
        raise AssertionError(f"the cluster ended without {word!r}")


def _main(replicas: int, settings: dict[str, str]) -> None:
    import psutil
    from ray.cluster_utils import Cluster

    import ray
    from higgs_server.deploy.ray_serve import complete, deployment
    from higgs_server.settings import Settings
    from ray import serve

    cluster = Cluster(initialize_head=True, head_node_args=_NODE)
    second = cluster.add_node(**_NODE)
    ray.init(cluster.address, log_to_driver=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
    known = complete(Settings(**settings))

    def run(count: int) -> None:
        # Two of them never fit on one node.
        wanted = deployment(known).options(
            num_replicas=count, autoscaling_config=None, ray_actor_options={"num_cpus": 3}
        )
        serve.run(wanted.bind(known))

    run(replicas)
    print(f"ready http://127.0.0.1:{port} {cluster.address}", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["replicas", count]:
                run(int(count))
            case ["kill-replica"]:
                workers = psutil.Process().children(recursive=True)
                next(worker for worker in workers if "ServeReplica" in worker.name()).kill()
            case ["kill-node"]:
                cluster.remove_node(second, allow_graceful=False)
        print(f"done {line.strip()}", flush=True)
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    _main(int(sys.argv[1]), dict(setting.split("=", 1) for setting in sys.argv[2:]))

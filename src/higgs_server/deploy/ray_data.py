"""A batch on a Ray cluster: the per-line code of batch.py in actors of Ray Data, one model each.

Ray places them, feeds them, and gives the lines of one that died to another. Only the process that asked reads the
input and writes the output, so the nodes share no folder but those of the model and the voices.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import pyarrow as pa
import ray.data
from ray.exceptions import RayError

import ray
from higgs_server.batch import Line, Outcome, Record, speak_here
from higgs_server.deploy.cluster import gpus, with_whole_paths
from higgs_server.settings import Settings
from higgs_server.synthesizer import Synthesizer
from higgs_server.types import SpeechError, SpeechRequest

LINES_A_TASK = 64
_SCHEMA = pa.schema([("record", pa.string()), ("sound", pa.binary())])


class Speaker:
    """One model of the cluster."""

    def __init__(self, settings: Settings) -> None:
        self._synthesizer = Synthesizer.load(settings.load_options(), settings, lambda stage, fraction: None)

    def __call__(self, task: pa.Table) -> pa.Table:
        """Lines in, outcomes out, each as a row."""
        rows_in = task.to_pylist()
        lines = (Line(row["number"], row["id"], SpeechRequest.model_validate_json(row["request"])) for row in rows_in)
        rows = [
            {"record": json.dumps(asdict(outcome.record)), "sound": outcome.sound}
            for outcome in speak_here(self._synthesizer, lines)
        ]
        return pa.Table.from_pylist(rows, _SCHEMA)


def speak_on_cluster(address: str, settings: Settings, lines: Iterator[Line]) -> Iterator[Outcome]:
    """Speaks on every GPU of the cluster, without GPUs on every node. Raises SpeechError where that cannot be."""
    try:
        ray.init(address, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SpeechError(f"No Ray cluster at {address}: {error}", f"无法连接 Ray 集群 {address}：{error}") from None
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False  # the batch has its own
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        on_gpus = gpus() if settings.device in ("auto", "cuda") else 0
        nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes())  # type: ignore[no-untyped-call]
        tasks: list[Any] = [ray.put(task) for task in _tasks(lines)]
        outcomes = ray.data.from_arrow_refs(tasks).map_batches(
            Speaker,
            fn_constructor_args=(with_whole_paths(settings),),
            batch_size=None,
            batch_format="pyarrow",
            # A second task at a time fills the slots that the end of the first leaves empty.
            compute=ray.data.ActorPoolStrategy(
                size=on_gpus or nodes or 1, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
            ),
            num_gpus=1 if on_gpus else 0,
            num_cpus=1,
        )
        for row in outcomes.iter_rows():
            yield Outcome(Record(**json.loads(row["record"])), row["sound"])
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        raise SpeechError(
            f"The cluster cannot speak: {str(cause).strip().splitlines()[-1]}",
            f"集群无法完成：{str(cause).strip().splitlines()[-1]}",
        ) from error
    finally:
        ray.shutdown()


def _tasks(lines: Iterator[Line]) -> Iterator[pa.Table]:
    """The input goes into the cluster's object store, which spills to disk, and never lies in this process whole."""
    while some := list(islice(lines, LINES_A_TASK)):
        yield pa.Table.from_pylist(
            [{"number": line.number, "id": line.id, "request": line.request.model_dump_json()} for line in some]
        )

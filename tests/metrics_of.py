"""Reading `/metrics`."""

from __future__ import annotations

import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, frozenset[tuple[str, str]]]


class Scrape:
    """The samples of one answer of `/metrics`."""

    def __init__(self, text: str) -> None:
        self.samples: dict[Sample, float] = {}
        self.types: dict[str, str] = {}
        for family in text_string_to_metric_families(text):
            self.types[family.name] = family.type
            for sample in family.samples:
                self.samples[sample.name, frozenset(sample.labels.items())] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name whose labels include these."""
        wanted = set(labels.items())
        return sum(value for (found, given), value in self.samples.items() if found == name and wanted <= given)


def metrics_of(url: str) -> Scrape:
    """What a server says now."""
    return Scrape(httpx.get(f"{url}/metrics", timeout=60).raise_for_status().text)


def idle_metrics(url: str, seconds: float = 60.0) -> Scrape:
    """The same once nothing runs and nobody waits: turns, slots and sockets of those who have gone are free."""
    end = time.monotonic() + seconds
    while True:
        found = metrics_of(url)
        busy = [name for name in ("requests_running", "requests_waiting", "slots_used") if found(f"higgs_{name}")]
        if not busy:
            return found
        assert time.monotonic() < end, f"still in use: {busy}"
        time.sleep(0.05)

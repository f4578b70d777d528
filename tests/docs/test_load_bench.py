"""`bench/load.py` measures a server as the operations page says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

from docs.page import ROOT, Page
from server_process import ServerProcess


def test_the_documented_command_prints_a_line_a_number_of_clients(server: ServerProcess) -> None:
    (command,) = (
        line for block in Page("docs/operations.md").blocks for line in block.code.splitlines() if "load.py" in line
    )
    words = shlex.split(command.replace("http://localhost:8000", server.url).replace("1,2,4,8,16", "1,2"))
    assert words[0] == ".venv/bin/python"
    result = subprocess.run(
        [sys.executable, *words[1:], "--seconds", "2"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    rows = re.findall(
        r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (\d+) \| 0 \| 0 \|$", result.stdout, re.MULTILINE
    )
    assert [row[0] for row in rows] == ["1", "2"]
    for _, p50, p95, sound, finished in rows:
        assert 0 < float(p50) <= float(p95)
        assert float(sound) > 0
        assert int(finished) > 0

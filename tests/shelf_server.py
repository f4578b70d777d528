"""The real server, for which `shelf://DIR` is a kind of storage (shelf.py): `python tests/shelf_server.py FLAGS`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import shelf  # noqa: F401
from higgs_server.main import main

if __name__ == "__main__":
    sys.exit(main())

"""How long each soak test lasts."""

from __future__ import annotations

import os

SECONDS = float(os.environ.get("SOAK_SECONDS", "300"))

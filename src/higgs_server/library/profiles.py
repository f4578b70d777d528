"""Profiles: voices described in words, in `profile.yaml` beside the voices' clips."""

from __future__ import annotations

import logging
from pathlib import Path

import yaml

from higgs_server.library.names import check_name, not_found
from higgs_server.types import Profile

log = logging.getLogger(__name__)

PROFILE_FILE = "profile.yaml"
PROFILE_PREFIX = "profile:"


class ProfileLibrary:
    """`profiles:` of one YAML file, each `NAME: description`; the file is read at every call."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / PROFILE_FILE

    def list(self) -> list[Profile]:
        """All profiles by name. A file that is no YAML mapping counts as empty, with a warning in the log."""
        try:
            content = yaml.safe_load(self.file.read_text("utf-8-sig"))
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            log.warning("%s cannot be read: %s", self.file, type(error).__name__)
            return []
        table = content.get("profiles") if isinstance(content, dict) else None
        if not isinstance(table, dict):
            log.warning("%s has no mapping called profiles", self.file)
            return []
        named = {str(name): " ".join(str(text).split()) for name, text in table.items() if text}
        return [Profile(name, description) for name, description in sorted(named.items())]

    def get(self, name: str, param: str = "ref_audio") -> Profile:
        """Raises NotFound naming the profiles that exist."""
        name = check_name(name, param)
        profiles = {profile.name: profile for profile in self.list()}
        if name not in profiles:
            raise not_found("profile", "音色描述", name, sorted(profiles), param)
        return profiles[name]

"""The README is held to the code: flags, fields, endpoints, errors and voices, each with what it says about them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from docs.page import ROOT, Page
from higgs_server.backends.embedded.voices import VOICES, default_voice
from higgs_server.library.profiles import ProfileLibrary
from higgs_server.library.scenes import SceneLibrary
from higgs_server.server.app import create_app
from higgs_server.server.openai import OPENAI_VOICES
from higgs_server.server.schemas import GenerateBody
from higgs_server.settings import BadSettings, Settings
from higgs_server.types import SpeechError

NONE = "–"
READMES = [Page("README.md"), Page("README.zh-CN.md")]
OPERATIONS = Page("docs/operations.md")
CLIENTS = [Page("docs/clients.md"), Page("docs/clients.zh-CN.md")]
SCALING = [Page("docs/scaling.md"), Page("docs/scaling.zh-CN.md")]
PAGES = [*READMES, OPERATIONS, *CLIENTS, *SCALING, *map(Page, ("ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"))]

each_readme = pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)


def _described(page: Page, first_cell: str) -> dict[str, str]:
    """Second cell by first cell, of the rows whose first cell matches."""
    return {row[0]: row[1] for row in page.rows if re.fullmatch(first_cell, row[0])}


@each_readme
def test_every_flag_with_its_default(page: Page) -> None:
    defaults = {
        "--" + name.replace("_", "-"): NONE if field.default in (None, False) else str(field.default)
        for name, field in Settings.model_fields.items()
    }
    assert _described(page, r"--[a-z][\w-]*") == defaults


@each_readme
def test_every_field_of_a_request_with_its_default(page: Page) -> None:
    defaults = {
        name: NONE if field.is_required() else json.dumps(field.default)
        for name, field in GenerateBody.model_fields.items()
    }
    documented = {row[0]: row[1] for row in page.rows if row[0] in defaults}
    assert documented == defaults


@each_readme
def test_every_endpoint(page: Page) -> None:
    endpoints = {
        f"{method.upper()} {path}"
        for path, methods in create_app(Settings()).openapi()["paths"].items()
        for method in methods
    }
    assert set(_described(page, r"(GET|POST|PUT|PATCH|DELETE) /\S*")) == endpoints | {"GET /openapi.json"}


@each_readme
def test_every_error(page: Page) -> None:
    documented = {(int(row[0]), row[1]) for row in page.rows if re.fullmatch(r"[45]\d\d", row[0])}
    answered = {(kind.status, kind.code) for kind in _error_kinds(SpeechError) if kind is not BadSettings}
    assert answered <= documented


def test_every_error_is_explained_to_who_runs_the_server() -> None:
    section = OPERATIONS.text.partition("## What an error means")[2].partition("\n## ")[0]
    explained = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", section, re.MULTILINE))))
    assert {kind.code for kind in _error_kinds(SpeechError) if kind is not BadSettings} <= explained


def test_the_openapi_document_has_every_status_of_an_error() -> None:
    operations = [item for path in create_app(Settings()).openapi()["paths"].values() for item in path.values()]
    described = [{int(status) for status in operation["responses"]} for operation in operations]
    assert {kind.status for kind in _error_kinds(SpeechError) if kind is not BadSettings} <= set.union(*described)
    assert all({401, 413, 429, 431} <= statuses for statuses in described), "refused before the endpoint is looked at"


def _error_kinds(kind: type[SpeechError]) -> Iterator[type[SpeechError]]:
    if kind.__module__.startswith("higgs_server"):
        yield kind
    for child in kind.__subclasses__():
        yield from _error_kinds(child)


@each_readme
def test_every_embedded_voice(page: Page) -> None:
    voices = {row[0]: row[2] for row in page.rows if row[0] in VOICES}
    assert voices.keys() == VOICES.keys()
    default = {"README.md": "default", "README.zh-CN.md": "默认"}[page.name]
    assert {name for name, words in voices.items() if default in words} == {
        default_voice("en").name,
        default_voice("zh").name,
    }


@each_readme
def test_examples_name_what_exists(page: Page) -> None:
    requests = [json.loads(block.code) for block in page.blocks if block.language == "json"]
    for request in requests:
        assert SceneLibrary(ROOT / "examples/scene_prompts").get(request["scene_prompt"])
        assert ProfileLibrary(ROOT / "examples/voice_prompts").get(request["ref_audio"].removeprefix("profile:"))


@pytest.mark.parametrize("page", CLIENTS, ids=lambda page: page.name)
def test_every_voice_of_openais(page: Page) -> None:
    documented = {
        name.strip(): row[1] for row in page.rows for name in row[0].split(",") if name.strip() in OPENAI_VOICES
    }
    assert documented == OPENAI_VOICES


@pytest.mark.parametrize(("english", "chinese"), [READMES, CLIENTS, SCALING], ids=["README", "clients", "scaling"])
def test_both_languages_have_the_same_parts(english: Page, chinese: Page) -> None:
    assert english.heading_levels == chinese.heading_levels
    assert [len(row) for row in english.rows] == [len(row) for row in chinese.rows]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    folder = (ROOT / page.name).parent
    assert [target for target in page.links if not (folder / target.partition("#")[0]).exists()] == []


def test_architecture_names_files_that_exist() -> None:
    page = Page("ARCHITECTURE.md")
    named = set(re.findall(r"`((?:[\w.-]+/)*[\w-]+(?:\.py|\.toml|/))`", page.prose))
    assert named
    places = (ROOT, ROOT / "src/higgs_server")
    assert sorted(name for name in named if not any((place / name).exists() for place in places)) == []

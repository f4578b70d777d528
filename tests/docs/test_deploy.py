"""What ships under deploy/ fits the server: its settings, endpoints, commands and metrics, and itself."""

from __future__ import annotations

import asyncio
import configparser
import json
import re
import shlex
import tomllib
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from docs.page import ROOT, Page
from higgs_server.server.app import create_app
from higgs_server.settings import ENV_PREFIX, Settings

DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
OPERATIONS = Page("docs/operations.md")


@pytest.fixture(scope="module")
def exported() -> dict[str, str]:
    """Type by name of every metric, as `/metrics` names them."""

    async def scrape() -> str:
        transport = httpx.ASGITransport(create_app(Settings()))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return (await client.get("/metrics")).text

    families = text_string_to_metric_families(asyncio.run(scrape()))
    return {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in families
        if not family.name.endswith("_created")
    }


def _metrics_in(text: str) -> set[str]:
    """Names without what a histogram's series add to them."""
    names = set(re.findall(r"\b(?:higgs|process)_[a-z_]+", text)) - {"higgs_server"}
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


@pytest.mark.parametrize("name", ["grafana-dashboard.json", "prometheus-alerts.yaml", "kubernetes.yaml"])
def test_every_metric_that_is_named_is_exported(name: str, exported: dict[str, str]) -> None:
    named = _metrics_in((DEPLOY / name).read_text())
    assert named
    assert named <= exported.keys()


def test_every_metric_is_documented(exported: dict[str, str]) -> None:
    documented = {row[0]: row[1] for row in OPERATIONS.rows if row[0].startswith(("higgs_", "process_"))}
    assert documented == {name: kind for name, kind in exported.items() if name in documented or "higgs" in name}


def test_every_own_metric_is_on_the_dashboard(exported: dict[str, str]) -> None:
    shown = _metrics_in((DEPLOY / "grafana-dashboard.json").read_text())
    assert {name for name in exported if name.startswith("higgs_")} <= shown


def test_alerts_say_what_and_for_how_long() -> None:
    (group,) = yaml.safe_load((DEPLOY / "prometheus-alerts.yaml").read_text())["groups"]
    for rule in group["rules"]:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]
        # The page says what to do about each.
        assert rule["alert"] in OPERATIONS.text


def test_dashboard_is_whole() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(target["expr"] for panel in panels for target in panel["targets"])
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "instance"}


def _settings_in(text: str) -> set[str]:
    return {name.lower() for name in re.findall(rf"\b{ENV_PREFIX}([A-Z_]+)\b", text)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_settings_that_are_named_exist(path: Any) -> None:
    text = path.read_text()
    assert _settings_in(text) <= Settings.model_fields.keys()
    flags = {flag.replace("-", "_") for flag in re.findall(r"higgs-server serve .*?--([a-z-]+)", text)}
    assert flags <= Settings.model_fields.keys()


def test_flags_of_the_operations_page_exist() -> None:
    flags = {flag.replace("-", "_") for flag in re.findall(r"`--([a-z-]+)", OPERATIONS.text)}
    assert flags <= Settings.model_fields.keys()


def test_everybody_gives_the_server_time_to_finish() -> None:
    least = Settings().shutdown_timeout + 5
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    assert all(int(service["stop_grace_period"].removesuffix("s")) >= least for service in services)
    (unit,) = re.findall(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "higgs-audio-server.service").read_text(), re.MULTILINE)
    assert int(unit) >= least
    (pod,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", (DEPLOY / "kubernetes.yaml").read_text())
    (wait,) = re.findall(r'\[sleep, "(\d+)"\]', (DEPLOY / "kubernetes.yaml").read_text())
    assert int(pod) - int(wait) >= least


def test_images_start_the_command_that_is_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    assert json.loads(entry) == ["higgs-server", "serve"]
    assert "higgs-server" in scripts


def test_images_run_without_rights_and_tell_whether_they_live() -> None:
    stages = _stages()
    (uid,) = re.findall(r"--uid (\d+)", stages["base"])
    assert int(uid) >= 10_000
    for name in ("base", "runtime", "cpu", "cuda", "ray"):
        # Whoever a stage is in between, it ends without rights; one that says nothing is who the stage before it was.
        assert re.findall(r"^USER (.*)$", stages[name], re.MULTILINE)[-1:] in ([], [f"{uid}:{uid}"])
    assert re.search(r"^USER", stages["base"], re.MULTILINE)
    runtime = stages["runtime"]
    assert "HEALTHCHECK" in runtime
    assert f"EXPOSE {Settings().port}" in runtime
    assert f"127.0.0.1:{Settings().port}/health" in runtime


def test_the_image_for_ray_leaves_the_start_to_ray_and_has_what_kuberay_calls() -> None:
    stages = _stages()
    assert stages["ray"].startswith("FROM base AS ray\n")
    assert "ENTRYPOINT" not in stages["base"] + stages["ray"]
    assert re.search(r"apt-get install .*\bwget\b", stages["ray"])
    assert "[higgs,ray,tracing]" in stages["packages-ray"]
    for name in ("serve.yaml", "kuberay.yaml"):
        assert "(--target ray)" in (DEPLOY / "ray" / name).read_text()


def _stages() -> dict[str, str]:
    """Text of each stage of the Dockerfile by its name."""
    parts = re.split(r"^(?=FROM )", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].rpartition(" ")[2]: part for part in parts}


def test_images_are_built_from_what_exists_and_the_ignore_file_lets_it_in() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for copied in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for name in shlex.split(copied):
            assert (ROOT / name).exists()
            assert f"!{name}" in ignored
    assert set(re.findall(r"--from=(\S+)", DOCKERFILE)) <= _stages().keys()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"'\.\[(.*)\]'", DOCKERFILE):
        assert set(named.split(",")) <= extras.keys()


def test_compose_builds_the_targets_and_takes_every_right_away() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert service["build"]["target"] == name == service["profiles"][0]
        assert name in _stages()
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        # What that file says counts: nothing here stands over it, and without it the server starts too.
        assert service["env_file"] == [{"path": ".env", "required": False}]
        assert "environment" not in service
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["ports"] == [f"127.0.0.1:{Settings().port}:{Settings().port}"]


def test_kubernetes_probes_what_exists_and_takes_every_right_away() -> None:
    documents = {item["kind"]: item for item in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()) if item}
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    paths = create_app(Settings()).openapi()["paths"].keys()
    assert server["livenessProbe"]["httpGet"]["path"] == "/health"
    assert re.findall(r"127\.0\.0\.1:8000(/\w+)", server["readinessProbe"]["exec"]["command"][-1]) == ["/ready"]
    assert {"/health", "/ready"} <= paths
    assert server["ports"][0]["containerPort"] == Settings().port
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert server["securityContext"]["readOnlyRootFilesystem"] is True
    assert server["securityContext"]["allowPrivilegeEscalation"] is False
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Service", "PodDisruptionBudget"):
        selector = documents[kind]["spec"]["selector"]
        assert selector.get("matchLabels", selector) == labels
    assert (
        documents["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
        == (documents["Deployment"]["metadata"]["name"])
    )


def test_ray_takes_its_configuration_and_the_server_its_settings() -> None:
    pytest.importorskip("ray.serve")
    from ray.serve.schema import ServeDeploySchema

    plain = yaml.safe_load((DEPLOY / "ray/serve.yaml").read_text())
    kuberay = yaml.safe_load((DEPLOY / "ray/kuberay.yaml").read_text())["spec"]
    assert yaml.safe_load(kuberay["serveConfigV2"]) == plain
    (application,) = ServeDeploySchema.model_validate(plain).applications
    assert application.import_path == "higgs_server.deploy.ray_serve:app"
    assert application.args.keys() <= Settings.model_fields.keys()


def test_unit_starts_the_command_without_rights() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "higgs-audio-server.service")
    service = unit["Service"]
    assert service["ExecStart"].endswith("/bin/higgs-server serve")
    assert (service["DynamicUser"], service["NoNewPrivileges"], service["CapabilityBoundingSet"]) == ("yes", "yes", "")

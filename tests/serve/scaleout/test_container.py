"""The container file and the Kubernetes manifest, checked by linters and against the server."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from intaglio.serve.cli import serve
from intaglio.serve.engine.worker import JOIN_SECONDS
from intaglio.serve.settings import read_settings
from intaglio.serve.transport.connections import LAST_BYTES
from tests.serve.conftest import Running

DEPLOY = Path(__file__).parents[3] / "deploy"
KUBERNETES = "1.34"
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [item for item in OBJECTS if item["kind"] == kind]
    return found


POD = of_kind("Deployment")["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


@pytest.mark.parametrize("item", OBJECTS, ids=lambda item: item["kind"])
def test_kubernetes_knows_every_field(item: dict[str, Any]) -> None:
    kubernetes_validate.validate(item, KUBERNETES, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    item = deepcopy(of_kind("Deployment"))
    item["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


def test_the_server_answers_probes_and_scrapes(server: Running) -> None:
    probes = [CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness")]
    scrape = POD["metadata"]["annotations"]
    assert scrape["prometheus.io/scrape"] == "true"
    for path in [*(probe["path"] for probe in probes), scrape["prometheus.io/path"]]:
        assert server.client.get(path).status_code == 200
    (port,) = CONTAINER["ports"]
    (service,) = of_kind("Service")["spec"]["ports"]
    alive = CONTAINER["livenessProbe"]["tcpSocket"]
    assert {probe["port"] for probe in [*probes, alive]} == {service["targetPort"], port["name"]}
    assert str(port["containerPort"]) == scrape["prometheus.io/port"]


def test_the_settings_fit_the_pod(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text(of_kind("ConfigMap")["data"]["serve.toml"])
    settings = read_settings(tmp_path / "serve.toml", {})
    assert str(settings.threads) == CONTAINER["resources"]["limits"]["cpu"]
    stopping = settings.grace + LAST_BYTES + JOIN_SECONDS
    assert stopping < POD["spec"]["terminationGracePeriodSeconds"]
    assert settings.port == CONTAINER["ports"][0]["containerPort"]
    mounts = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert settings.api_keys
    assert {str(settings.api_keys.parent), str(settings.images)} <= mounts
    volumes = {volume["name"] for volume in POD["spec"]["volumes"]}
    assert volumes == {mount["name"] for mount in CONTAINER["volumeMounts"]}


def test_the_flags_of_the_pod_and_the_image_exist() -> None:
    app = typer.Typer()
    app.command()(serve)
    entry = re.search(r'^ENTRYPOINT \["intaglio", "serve", (.*)\]$', CONTAINERFILE, re.MULTILINE)
    assert entry
    given = [*yaml.safe_load(f"[{entry[1]}]"), *CONTAINER["args"]]
    parsed = typer.main.get_command(app).make_context("serve", given).params
    assert parsed["host"] == "0.0.0.0"
    assert str(parsed["config"]) == "/config/serve.toml"


def test_the_container_file_is_clean() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run(
        [linter, DEPLOY / "Containerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_files_that_the_image_copies_exist() -> None:
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text()
    for name in re.findall(r"^!(\S+)$", ignored, re.MULTILINE):
        if not name.startswith("build/"):  # where the wheel is, which tests of `make dist` look at
            assert list(DEPLOY.parent.glob(name)), name

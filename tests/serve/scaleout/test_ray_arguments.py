"""The arguments of the application on Ray, passed as Ray passes them, but without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

from intaglio.serve.models.registry import absolute
from intaglio.serve.ray_app import Refused, app

WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "bundles is missing: give bundles=FOLDER"),
    ({"bundle": "a"}, "there is no argument bundle: give bundles, config,"),
    ({"bundles": "a", "cpus": "x"}, "cpus is invalid"),
    ({"bundles": "a", "gpus": "-1"}, "gpus is invalid"),
    ({"bundles": "a", "config": "b.toml"}, "cannot read --config {here}/b.toml"),
    ({"bundles": "a"}, "{here}/a"),
    ({"bundles": "n=a"}, "{here}/a"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_an_invalid_argument_is_one_sentence(
    arguments: dict[str, Any],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused) as refused:
        build(app, arguments)
    refused.value.show()  # what `serve run` does
    line = capsys.readouterr().err
    assert line.startswith("intaglio: ")
    assert says.format(here=tmp_path) in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("autoscaling", "says"),
    [
        ({"max_replicas": 0}, "max_replicas is invalid"),
        ({"min_replicas": 5}, r"autoscaling is invalid: max_replicas \(4\)"),
    ],
)
def test_autoscaling_is_checked_too(
    forked_bundle: Path, autoscaling: dict[str, int], says: str
) -> None:
    with pytest.raises(Refused, match=says):
        build(app, {"bundles": str(forked_bundle), "autoscaling": autoscaling})


def test_folders_are_relative_to_the_calling_process(
    forked_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(forked_bundle.parent)
    assert absolute(forked_bundle.name) == str(forked_bundle)
    assert absolute(f"name={forked_bundle.name}") == f"name={forked_bundle}"
    built = build(app, {"bundles": f"name={forked_bundle.name}", "cpus": "1"})
    assert isinstance(built, Application)

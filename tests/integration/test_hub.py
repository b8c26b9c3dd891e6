"""Bundles travel by the Hub: push, pull and names, with huggingface_hub's client on a small Hub."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from huggingface_hub import ModelCard

import intaglio
from intaglio.__main__ import READERS, SWITCHES, bundle_argument
from intaglio.hub import HubName
from intaglio.hub.card import model_card
from tests.bundles import bundle as made_bundle
from tests.export.hub_server import COMMIT, Hub, serve
from tests.integration.conftest import PROMPT, Command, check

BUNDLE = Path(__file__).parents[1] / "data" / "bundle-0.1.0"
NAME = "tiny/bundle"
MANIFEST = json.loads((BUNDLE / "bundle.json").read_text())
FILES = {"bundle.json", *MANIFEST["files"]}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub, to which the commands of this test are pointed, with an empty cache."""
    with serve() as hub:
        hub.root = tmp_path / "hub"
        for name, value in {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "hf_token",
            "HF_HUB_DISABLE_XET": "1",  # the Hub's other way of uploads, which this one lacks
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def published(hub: Hub) -> Hub:
    hub.repositories[NAME] = shutil.copytree(BUNDLE, hub.root / NAME)
    return hub


def succeed(command: Command, *args: Any) -> subprocess.CompletedProcess[str]:
    done = command(*args)
    assert done.returncode == 0, done.stderr
    return done


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_bundle_goes_there_and_back(hub: Hub, entry_point: Command, tmp_path: Path) -> None:
    bundle = shutil.copytree(BUNDLE, tmp_path / "bundle")
    (bundle / "notes.txt").write_text("mine")
    done = succeed(entry_point, "push", bundle, NAME)
    assert done.stdout == f"{hub.url}/{NAME} (private; publish it in its settings)\n"
    assert hub.made[NAME]["visibility"] == "private"
    there = content(hub.repositories[NAME])
    assert set(there) == FILES | {"README.md", ".gitattributes"}
    assert len(hub.commits) == 1  # all files at once, small ones and those of Git LFS
    assert {line.split()[0] for line in hub.commits[0]} == {"file", "lfsFile"}

    done = succeed(entry_point, "pull", NAME, "-o", "here")
    assert done.stdout == "here\n"
    got = content(entry_point.folder / "here")
    assert got == {name: there[name] for name in FILES | {"README.md"}}
    assert {name: got[name] for name in FILES} == {f: (BUNDLE / f).read_bytes() for f in FILES}
    assert [path.name for path in entry_point.folder.iterdir()] == ["here"]


def test_a_second_push_replaces_the_first(hub: Hub, entry_point: Command, tmp_path: Path) -> None:
    bundle = shutil.copytree(BUNDLE, tmp_path / "bundle")
    succeed(entry_point, "push", bundle, NAME)
    manifest = json.loads((bundle / "bundle.json").read_text())
    del manifest["vae_encoder"]
    manifest["files"] = {k: v for k, v in manifest["files"].items() if "vae_encoder" not in k}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    done = succeed(entry_point, "push", bundle, NAME)
    assert "the files there were replaced" in done.stdout
    there = set(content(hub.repositories[NAME])) - {"README.md", ".gitattributes"}
    assert there == {"bundle.json", *manifest["files"]}


def test_the_model_card(tmp_path: Path) -> None:
    folder = made_bundle("sd3", quantize="int8")
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest |= {"license": "tiny-license", "source": "tiny/sd3@main", "name": "a | *b*"}
    card = ModelCard(model_card(manifest, HubName("org/name")))
    assert (card.data.license, card.data.license_name) == ("other", "tiny-license")
    assert card.data.base_model == "tiny/sd3"
    assert card.data.library_name == "intaglio"
    assert r"# a \| \*b\*" in card.text
    worst = max(manifest["errors"].values())
    assert f"| Parity error | {worst:.1e} (`" in card.text
    assert "| Precision | int8 weights in the transformer |" in card.text
    assert "| Devices | CPU |" in card.text
    assert "| Licence | tiny-license |" in card.text


def test_recorded_errors_are_those_of_the_graphs() -> None:
    manifest = json.loads((made_bundle("sd3") / "bundle.json").read_text())
    graphs = {name for name in manifest["files"] if name.endswith(".onnx")}
    parity = {name for name in graphs if not name.endswith((".cpu.onnx", ".decomposed.onnx"))}
    assert set(manifest["errors"]) == parity
    assert all(0 < error < 1e-5 for error in manifest["errors"].values())


def test_a_name_is_pulled_at_its_first_use(published: Hub, entry_point: Command) -> None:
    draw = ("--prompt", "a dress", "--steps", "2", "-o")
    first = succeed(entry_point, "generate", NAME, *draw, "one.png")
    place = rf"{NAME} was pulled from the Hub to \S+/snapshots/{COMMIT}"
    assert re.fullmatch(f"intaglio: note: {place}\n", first.stderr)
    fetched = len(published.fetched)
    assert fetched == len(FILES)
    published.status = 503  # it is not asked again
    again = succeed(entry_point, "generate", NAME, *draw, "two.png")
    assert "pulled" not in again.stderr
    assert len(published.fetched) == fetched
    succeed(entry_point, "generate", BUNDLE, *draw, "folder.png")
    pictures = content(entry_point.folder)
    assert pictures["one.png"] == pictures["two.png"] == pictures["folder.png"]
    assert json.loads(succeed(entry_point, "inspect", "--json", NAME).stdout)["name"] == "tiny-sd3"


def test_a_folder_of_that_name_wins(published: Hub, entry_point: Command) -> None:
    shutil.copytree(BUNDLE, entry_point.folder / NAME)
    succeed(entry_point, "inspect", NAME)
    assert published.fetched == []


def test_the_executable_names_the_command(published: Hub, command: Command) -> None:
    says = f"if it is one on the Hub, run `intaglio pull {NAME} -o {NAME}`"
    said = check(command, 3, says, "inspect", NAME)
    assert said.startswith(f"there is no folder {NAME}: ")
    assert "pull" not in check(command, 3, "there is no folder bundle: ", "inspect", "bundle")


def test_a_path_with_a_mistake_is_named(hub: Hub, entry_point: Command) -> None:
    says = "there is no folder tiny/mistaken, and there is no repository tiny/mistaken on the Hub"
    check(entry_point, 3, says, "inspect", "tiny/mistaken")
    assert bundle_argument(["devices", "tiny/mistaken"]) is None


def test_an_interrupted_pull_is_completed(published: Hub, entry_point: Command) -> None:
    folder = Path(succeed(entry_point, "pull", NAME).stdout.strip())
    lost = folder / "vae_decoder" / "model.onnx"
    lost.resolve().unlink()
    lost.unlink()
    assert "was pulled" in succeed(entry_point, "inspect", NAME).stderr
    assert published.fetched.count("vae_decoder/model.onnx") == 2
    assert published.fetched.count("vae_encoder/model.onnx") == 1


@pytest.mark.parametrize("output", [(), ("-o", "here")])
def test_a_file_that_is_not_the_manifests(
    published: Hub, entry_point: Command, output: tuple[str, ...]
) -> None:
    file = published.repositories[NAME] / "vae_decoder" / "model.onnx"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    done = entry_point("pull", NAME, *output)
    assert done.returncode == 3
    assert "the file vae_decoder/model.onnx of tiny/bundle is not the one in its" in done.stderr
    assert not (entry_point.folder / "here").exists()
    file.write_bytes(good)
    folder = succeed(entry_point, "pull", NAME, *output).stdout.strip()
    assert intaglio.Bundle.open(entry_point.folder / folder).name == "tiny-sd3"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("../outside", "which is outside the bundle: do not use it"),
        ("/etc/passwd", "which is outside the bundle: do not use it"),
        ("a\\..\\..\\b", "which is outside the bundle: do not use it"),
        ("C:b", "which is outside the bundle: do not use it"),
        ("engines/tensorrt/a.engine", "engines can hold programs and do not belong on the Hub"),
    ],
)
def test_a_manifest_with_a_file_that_no_bundle_has(
    published: Hub, entry_point: Command, path: str, says: str
) -> None:
    manifest = MANIFEST | {"files": {path: {"bytes": 1, "sha256": "0" * 64}}}
    (published.repositories[NAME] / "bundle.json").write_text(json.dumps(manifest))
    check(entry_point, 3, says, "pull", NAME)
    assert published.fetched == ["bundle.json"]


def test_what_cannot_be_pulled(published: Hub, entry_point: Command) -> None:
    check(entry_point, 2, "is not a name on the Hub", "pull", "bundle")
    check(entry_point, 3, "no repository tiny/other on the Hub", "generate", "tiny/other")
    check(entry_point, 3, "has no revision v9", "pull", f"{NAME}@v9")
    (published.repositories[NAME] / "bundle.json").unlink()
    check(entry_point, 3, f"`intaglio export {NAME} -o FOLDER`", "pull", NAME)
    (entry_point.folder / "here").mkdir()
    check(entry_point, 2, "here exists already", "pull", NAME, "-o", "here")


def test_a_gated_bundle(published: Hub, entry_point: Command) -> None:
    published.gated[NAME] = 403
    says = f"tiny/bundle is gated: accept its licence on {published.url}/{NAME}, and log in"
    check(entry_point, 3, says, "inspect", NAME)


def test_no_network(published: Hub, entry_point: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    check(entry_point, 4, "cannot be reached for tiny/bundle: check the network", "inspect", NAME)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check(entry_point, 4, "HF_HUB_OFFLINE forbids", "inspect", NAME)
    check(entry_point, 4, "HF_HUB_OFFLINE forbids", "push", BUNDLE, NAME)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", published.url)
    folder = succeed(entry_point, "pull", NAME).stdout
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert succeed(entry_point, "pull", NAME).stdout == folder


def test_what_cannot_be_pushed(hub: Hub, entry_point: Command, tmp_path: Path) -> None:
    other = hub.repositories["tiny/other"] = hub.root / "tiny" / "other"
    other.mkdir(parents=True)
    (other / "model.safetensors").write_bytes(b"weights")
    check(entry_point, 3, "other files than a bundle's", "push", BUNDLE, "tiny/other")
    assert list(content(other)) == ["model.safetensors"]
    check(entry_point, 2, "not to a revision", "push", BUNDLE, f"{NAME}@main")
    broken = shutil.copytree(BUNDLE, tmp_path / "broken")
    (broken / "vae_decoder" / "model.onnx").write_bytes(b"")
    check(entry_point, 3, "vae_decoder/model.onnx", "push", broken, NAME)
    hub.status, hub.says = 403, "You don't have the rights to create a model"
    check(entry_point, 3, "(You don't have the rights", "push", BUNDLE, NAME)
    assert hub.made == {}


def test_switches_are_the_options_without_a_value(entry_point: Command) -> None:
    """The bundle is found among the arguments without the C++ parser, so the two must agree."""
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for name in READERS:
        text = succeed(entry_point, name, "--help").stdout
        for flags, value in re.findall(r"^  (-\S+)(?: ([A-Z]\S*))?", text, re.MULTILINE):
            found[bool(value)] |= set(flags.split(","))
    assert found[False] - {"-h", "--help"} == SWITCHES
    assert len(found[True]) > 20
    for option in found[True]:
        assert bundle_argument(["generate", option, "a/b", "c/d"]) == 3
        assert bundle_argument(["generate", f"{option}=a/b", "c/d"]) == 2
    for option in SWITCHES:
        assert bundle_argument(["generate", option, "c/d"]) == 2


@pytest.mark.parametrize("place", ["../../secret.data", "{folder}/secret.data"])
def test_a_graph_that_reads_outside_the_bundle(
    command: Command, tmp_path: Path, place: str
) -> None:
    bundle = shutil.copytree(BUNDLE, tmp_path / "bundle")
    shutil.copy(bundle / "vae_decoder" / "weights.data", tmp_path / "secret.data")
    manifest = json.loads((bundle / "bundle.json").read_text())
    for name in ("vae_decoder/model.onnx", "vae_decoder/model.cpu.onnx"):
        model = onnx.load(bundle / name, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = place.format(folder=tmp_path)
        data = model.SerializeToString()
        (bundle / name).write_bytes(data)
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    draw = ("generate", bundle, "--prompt", PROMPT, "--steps", "1", "-o", "boot.png")
    check(command, 3, "External data path validation failed", *draw)

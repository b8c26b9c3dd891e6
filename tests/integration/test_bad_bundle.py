"""Test that opening a damaged bundle fails with one sentence, in the command and in Python."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import intaglio
from intaglio.analysis.report.output_folder import read_prompts
from intaglio.deploy.contents import collect_bundle
from tests.integration.conftest import PROMPT, Command, check, in_python

DELETED = object()
FORKED = ("transformer", "graphs", "forked")
ENCODER = ("prompt", "encoders", "text_encoder")


def edited(manifest: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """Return a copy with `value` at `place`, or without that entry for DELETED."""
    changed = copy.deepcopy(manifest)
    node = changed
    for key in place[:-1]:
        node = node[key]
    if value is DELETED:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return changed


@pytest.fixture(scope="module")
def manifest(forked_bundle: Path) -> Any:
    return json.loads((forked_bundle / "bundle.json").read_text())


@pytest.fixture
def broken(forked_bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle that a test may damage."""
    return Path(shutil.copytree(forked_bundle, tmp_path / "broken"))


def refused(command: Command, folder: Path, says: str) -> None:
    """Check that generate, inspect and Python refuse the folder with the same sentence."""
    sentence = check(command, 3, says, "generate", folder, "--prompt", PROMPT)
    assert check(command, 3, says, "inspect", folder) == sentence
    with pytest.raises(intaglio.InputError) as raised:
        intaglio.Pipeline.open(folder)
    assert str(raised.value) == in_python(sentence)


@pytest.mark.parametrize("folder", ["absent", "empty", "a file", "x" * 5000])
def test_not_a_bundle(command: Command, tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder
    if folder == "empty":
        path.mkdir()
    elif folder == "a file":
        path.write_text("{}")
    says = {"absent": f"there is no folder {path}: correct the path", "x" * 5000: "too long"}
    refused(command, path, says.get(folder, "is not a bundle (it has no bundle.json)"))


def test_missing_file(command: Command, broken: Path) -> None:
    (broken / "tokenizer" / "tables.json").unlink()
    refused(command, broken, "tokenizer/tables.json: No such file or directory")


def test_truncated_file(command: Command, broken: Path) -> None:
    weights = broken / "transformer" / "weights.data"
    bytes_ = weights.stat().st_size
    with weights.open("r+b") as file:
        file.truncate(bytes_ - 1)
    refused(command, broken, f"has {bytes_ - 1} bytes where bundle.json says {bytes_}")


def test_tampered_file(command: Command, broken: Path) -> None:
    """A changed bit is found even if the size is right."""
    graph = broken / "vae_decoder" / "model.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    refused(command, broken, "vae_decoder/model.onnx is not the file that was exported")


def test_tampered_large_file(command: Command, broken: Path, tmp_path: Path) -> None:
    """A large file is hashed during the first step, and its error comes before any result."""
    size = 128 << 20
    with (broken / "large.data").open("wb") as file:
        file.truncate(size)
    manifest = json.loads((broken / "bundle.json").read_text())
    manifest["files"]["large.data"] = {"bytes": size, "sha256": "0" * 64}
    (broken / "bundle.json").write_text(json.dumps(manifest))
    says, output = "large.data is not the file that was exported", tmp_path / "image.png"
    sentence = check(
        command, 3, says, "generate", broken, "--prompt", PROMPT, "--steps", 2, "-o", output
    )
    assert not output.exists()
    assert check(command, 3, says, "inspect", broken) == sentence
    pipeline = intaglio.Pipeline.open(broken)
    steps: list[int] = []
    for call in (
        lambda: pipeline.generate(PROMPT, steps=2, on_step=lambda step: steps.append(step.step)),
        lambda: pipeline.embed(PROMPT),
        lambda: intaglio.Bundle.open(broken),
    ):
        with pytest.raises(intaglio.InputError) as raised:
            call()
        assert str(raised.value) == in_python(sentence)
    assert not steps
    manifest["files"]["large.data"]["sha256"] = hashlib.sha256(bytes(size)).hexdigest()
    (broken / "bundle.json").write_text(json.dumps(manifest))
    assert len(intaglio.Pipeline.open(broken).generate(PROMPT, steps=1).images) == 1


def test_text_files_may_begin_with_a_byte_order_mark(broken: Path, tmp_path: Path) -> None:
    """A manifest or a list of prompts that an editor saved with a byte order mark is read."""
    content = (broken / "bundle.json").read_text("utf-8")
    (broken / "bundle.json").write_text(content, "utf-8-sig")
    name = json.loads(content)["name"]
    assert intaglio.Bundle.open(broken).name == collect_bundle(broken, "x").manifest["name"] == name
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a boot\n\na coat\n", "utf-8-sig")
    assert read_prompts(prompts) == ["a boot", "a coat"]


def test_folder_in_place_of_a_file(command: Command, broken: Path) -> None:
    for name in ("vae_decoder/model.onnx", "bundle.json"):
        (broken / name).unlink()
        (broken / name).mkdir()
        refused(command, broken, f"{name}: Is a directory")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not valid JSON at byte"),
        (b"{", "is not valid JSON at byte 2"),
        (b"\xff\xfe{}", "is not valid JSON at byte 1"),
        (b"[" * 100_000, "is not valid JSON at byte 100001"),
        (b'{"schema_version": 1e999}', "holds a number that is too large"),
        (b"[]", "schema_version is missing"),
        (b"{}", "schema_version is missing"),
        (b"null", "schema_version is missing"),
    ],
    ids=["empty", "open", "not UTF-8", "deep", "infinite", "list", "nothing", "null"],
)
def test_not_a_manifest(command: Command, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "bundle.json").write_bytes(content)
    refused(command, tmp_path, says)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("schema_version",), 4, "was written by a newer Intaglio (schema 4"),
        (("schema_version",), 2, "input source has other values: export the bundle again"),
        (("schema_version",), 2**32 + 1, "was written by a newer Intaglio (schema 4294967297"),
        (("schema_version",), True, "schema_version has the wrong type"),
        (("schema_version",), 0, "schema_version must be at least 1"),
        (("layout",), DELETED, "layout is missing"),
        (("layout",), "triple", "layout must be forked or dual"),
        (("layout",), "dual", "transformer.graphs.base is missing"),
        (("prediction_type",), "epsilon", "does not fit a model that predicts epsilon"),
        (("prediction_type",), "sample", "prediction_type must be velocity or epsilon"),
        (("sigmas",), "cosine", "sigmas is something that this version does not sample with"),
        (("mu",), "linear", "mu is something that this version does not sample with"),
        (("distilled",), "yes", "distilled has the wrong type"),
        (("transformer", "patch_size"), 2.5, "transformer.patch_size has the wrong type"),
        (("transformer", "channels"), 0, "transformer.channels must be from 1 to"),
        ((*FORKED, "inputs", 0, "dtype"), "float16", "inputs[0].dtype must be float32 or int64"),
        ((*FORKED, "inputs", 0, "axes", 1), None, "axes[1] has the wrong type"),
        (("massive_activations", "block"), 4, "is not a block of the transformer"),
        (("massive_activations", "channels"), [64], "names a channel that"),
        (("massive_activations", "ref"), [0.0, 1.0, 2.0, 3.0, 4.0], "must have one value per"),
        (("latent", "scaling_factor"), 0, "latent.scaling_factor must not be 0"),
        (("scheduler", "type"), "DDIMScheduler", "DDIMScheduler"),
        (("scheduler", "type"), "DPMSolverMultistepScheduler", "use_flow_sigmas is missing"),
        (("scheduler", "shift"), -1, "shift must be a finite number above 0"),
        (("scheduler", "invert_sigmas"), True, "scheduler.invert_sigmas"),
        ((*ENCODER, "graph", "outputs", 0), DELETED, "has no output of role hidden"),
        ((*ENCODER, "graph", "outputs", 1, "axes"), [], "has no fixed last axis"),
        (("prompt", "text", 0, "length"), 17, "is longer than what its encoders give"),
        (("prompt", "text_width"), 39, "give more channels than text_width"),
        (("prompt", "pooled", 0), "clip", "names an encoder that the bundle does not have"),
        (("defaults", "height"), 33, "give a multiple of 4 from 4 to"),
        (("defaults", "ma_keep"), [0, -2], "ma-keep -2 is not 0 or more"),
        (("defaults", "cfg_window"), [1], "defaults.cfg_window must hold two numbers"),
        (("files", "vae_decoder/model.onnx"), DELETED, "does not list vae_decoder/model.onnx"),
        (("files", "vae_decoder/model.onnx", "bytes"), -1, "has the wrong type"),
    ],
)  # fmt: skip
def test_manifest_that_is_wrong(
    command: Command, manifest: Any, tmp_path: Path, place: Any, value: Any, says: str
) -> None:
    (tmp_path / "bundle.json").write_text(json.dumps(edited(manifest, place, value)))
    refused(command, tmp_path, says)


def test_graphs_that_contradict_the_manifest(command: Command, manifest: Any, broken: Path) -> None:
    """Only running finds this; ONNX Runtime's own log must not print a second message."""
    wrong = edited(manifest, ("transformer", "patch_size"), 1)
    (broken / "bundle.json").write_text(json.dumps(wrong))
    says = "running transformer/forked.onnx failed in ONNX Runtime"
    sentence = check(command, 3, says, "generate", broken, "--prompt", PROMPT)
    with pytest.raises(intaglio.InputError) as raised:
        intaglio.Pipeline.open(broken).generate(PROMPT)
    assert " ".join(str(raised.value).split()) == " ".join(sentence.split())


@pytest.mark.parametrize(
    ("part", "says"),
    [("vae_decoder", "has no VAE decoder"), ("vae_encoder", "or take a model that can")],
)
def test_missing_half_of_the_vae(
    command: Command, manifest: Any, broken: Path, part: str, says: str
) -> None:
    """The error comes before the first step, not after the last one."""
    (broken / "bundle.json").write_text(json.dumps(edited(manifest, (part,), DELETED)))
    picture = Image.new("RGB", (32, 32))
    start = broken.parent / "start.png"
    picture.save(start)
    sentence = check(command, 3, says, "generate", broken, "--prompt", PROMPT, "--image", start)
    ran: list[int] = []
    with pytest.raises(intaglio.InputError) as raised:
        intaglio.Pipeline.open(broken).generate(
            PROMPT, image=picture, on_step=lambda step: ran.append(step.step)
        )
    assert str(raised.value) == in_python(sentence)
    assert ran == []


def open_manifest(folder: Path, manifest: Any) -> str:
    """Return the message of opening a folder that has only this manifest."""
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(intaglio.InputError) as raised:
        intaglio.Bundle.open(folder)
    return str(raised.value)


shared = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
inner = st.lists(st.sampled_from(["..", ".", "", "a", "transformer", "..."]), max_size=4)
OUTSIDE = st.one_of(
    st.tuples(inner, inner).map(lambda ends: "/".join([*ends[0], "..", *ends[1]])),
    inner.map(lambda parts: "/".join(["", "etc", *parts])),
    inner.map(lambda parts: "\\".join(["..", *parts])),
    st.sampled_from(["", "C:\\weights", "a\0b", "/", "..", "transformer/forked.onnx\0.png"]),
)
PATHS = [
    (*FORKED, "path"),
    ("vae_decoder", "path"),
    (*ENCODER, "tokenizer"),
    (*ENCODER, "graph", "path"),
]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.sampled_from(PATHS), path=OUTSIDE)
def test_path_outside_the_folder(manifest: Any, tmp_path: Path, place: Any, path: str) -> None:
    said = open_manifest(tmp_path, edited(manifest, place, path))
    assert said.endswith("which is not a path inside the bundle: export the bundle again")
    assert ".".join(place) in said
    listed = edited(manifest, ("files", path), {"bytes": 1, "sha256": "0" * 64})
    assert "not a path inside the bundle" in open_manifest(tmp_path, listed)


def test_path_outside_on_the_command_line(command: Command, manifest: Any, tmp_path: Path) -> None:
    wrong = edited(manifest, (*FORKED, "path"), "transformer/../../secret.onnx")
    (tmp_path / "bundle.json").write_text(json.dumps(wrong))
    refused(command, tmp_path, "transformer.graphs.forked.path names")


def places(node: Any, place: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the paths of all values in a manifest."""
    children = node.items() if isinstance(node, dict) else ()
    if isinstance(node, list):
        children = enumerate(node)
    found = [place] if place else []
    return found + [deep for key, child in children for deep in places(child, (*place, key))]


ODD = st.one_of(
    st.just(DELETED), st.none(), st.booleans(), st.floats(), st.text(max_size=3),
    st.integers(-(2**65), 2**65), st.sampled_from([0, 1, -1, 2**31, 2**32 + 1, [], {}]),
)  # fmt: skip


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), value=ODD)
def test_any_one_change_is_refused_or_harmless(
    manifest: Any, tmp_path: Path, data: st.DataObject, value: Any
) -> None:
    """The folder has no other file, so even a harmless change ends with a missing file."""
    place = data.draw(st.sampled_from(places(manifest)))
    said = open_manifest(tmp_path, edited(manifest, place, value))
    assert str(tmp_path) in said

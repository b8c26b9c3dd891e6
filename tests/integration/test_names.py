"""Names of files and models that hold more than letters, and output that nobody reads."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

import intaglio
from tests.fake_bundle import make_bundle
from tests.integration.conftest import PROMPT, Command


@pytest.mark.reported("AUTOMATIC1111/stable-diffusion-webui#705", "apple/ml-stable-diffusion#52")
def test_the_longest_name_is_written(
    command: Command, pipeline: intaglio.Pipeline, forked_bundle: Path
) -> None:
    """A file may have the longest name that its folder takes, and the drawing is not lost."""
    longest = os.pathconf(command.folder, "PC_NAME_MAX")
    name = "a" * (longest - len(".png")) + ".png"
    command.draw(forked_bundle, "--steps", 1, "-o", name)
    with Image.open(command.folder / name) as image:
        assert image.size == (32, 32)
    (saved,) = pipeline.generate(PROMPT, steps=1).save(command.folder / f"b{name[1:]}")
    assert saved.stat().st_size == (command.folder / name).stat().st_size
    assert len(list(command.folder.iterdir())) == 2


@pytest.mark.reported("untitaker/python-atomicwrites#42", "fabiocaccamo/python-fsutil#94")
@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_file_that_is_replaced_keeps_its_permissions(
    command: Command, forked_bundle: Path, mode: int
) -> None:
    """An output that exists keeps its permissions, so a private one does not become public."""
    output = command.folder / "image.png"
    output.touch()
    output.chmod(mode)
    command.draw(forked_bundle, "--steps", 1)
    assert output.stat().st_size > 0
    assert stat.S_IMODE(output.stat().st_mode) == mode


@pytest.mark.reported("microsoft/terminal#10908")
def test_a_link_to_nothing_yet_is_followed(command: Command, forked_bundle: Path) -> None:
    """A symbolic link whose file does not exist stays a link, and the file is written."""
    link, target = command.folder / "link.png", command.folder / "folder" / "image.png"
    target.parent.mkdir()
    link.symlink_to("middle.png")
    (command.folder / "middle.png").symlink_to("folder/image.png")
    command.draw(forked_bundle, "--steps", 1, "-o", link)
    assert link.is_symlink()
    with Image.open(target) as image:
        assert image.size == (32, 32)


@pytest.mark.reported("ggml-org/llama.cpp#28969")
def test_a_bundle_does_not_control_the_terminal(command: Command, tmp_path: Path) -> None:
    """What a bundle says of itself reaches a terminal without control characters."""
    bundle = make_bundle(tmp_path / "bundle", "class")
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["name"] = "\x1b]0;title\x07\x1b[2Jname\nlicence MIT"
    manifest["license"] = "a\x9b31m\x7f\rb"
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    shown = command("inspect", bundle).stdout
    assert "name" in shown
    assert [c for c in shown if unicodedata.category(c) == "Cc" and c != "\n"] == []
    assert not any(line.startswith("licence MIT") for line in shown.splitlines())
    assert json.loads(command("inspect", bundle, "--json").stdout)["name"] == manifest["name"]


@pytest.mark.reported("ggml-org/llama.cpp#9195")
def test_json_is_written_for_any_name(command: Command, tmp_path: Path) -> None:
    """inspect --json writes JSON also if a folder's name is not UTF-8."""
    bundle = make_bundle(tmp_path / "bundle", "class")
    folder = bundle / "engines" / os.fsdecode(b"gpu\xff")
    folder.mkdir(parents=True)
    (folder / "engine.json").write_text("{}")
    done = command("inspect", bundle, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "broken" in json.loads(done.stdout)["engines"]["gpu�"]


@pytest.mark.reported("trailofbits/graphtage#156")
@pytest.mark.parametrize("args", [["--help"], ["inspect", "BUNDLE"]], ids=["help", "inspect"])
def test_a_reader_that_goes_away(
    command: Command, entry_point: Command, tmp_path: Path, args: list[str]
) -> None:
    """Where the reader of a pipe has ended, as `head` does, both commands end without a word."""
    bundle = make_bundle(tmp_path / "bundle", "class")
    for program in (command, entry_point):
        reading, writing = os.pipe()
        os.close(reading)
        line = program.line(*(bundle if arg == "BUNDLE" else arg for arg in args))
        done = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writing)
        assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")

"""`intaglio deploy folder`: what it writes runs elsewhere, by itself, and draws the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import intaglio
from intaglio.deploy.output import locked
from intaglio.deploy.portable import write_folder
from tests.bundles import bundle
from tests.conftest import onnxruntime_library
from tests.integration.conftest import ENTRY_POINT, PROMPT, ROOT, Command, check, with_mounts
from tests.integration.test_standalone import ENTER, linked

BARE = {"PATH": "/usr/bin:/bin"}  # nothing that says where libraries are
GLIBC = re.compile(r"ld-linux|lib(c|m|dl|rt|pthread)\.so")


def ignore(done: int, total: int) -> None:
    """Progress that nobody sees."""


@pytest.fixture(scope="module")
def folder(forked_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployed bundle that was moved after it was written."""
    place = tmp_path_factory.mktemp("place")
    line = [ENTRY_POINT, "deploy", "folder", forked_bundle, "-o", place / "written"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert re.fullmatch(
        rf"{place}/written \([\d.]+ MB\); try it: {place}/written/smoke_test.sh\n", done.stdout
    )
    assert list(place.iterdir()) == [place / "written"]
    return (place / "written").rename(place / "moved and renamed")


def test_the_smoke_test_passes_in_an_empty_environment(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [folder / "smoke_test.sh"], cwd="/", env=BARE, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("smoke test passed: an image of ")
    assert sorted(folder.rglob("*")) == before


def test_the_smoke_test_can_fail(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "bundle" / "vae_decoder" / "model.onnx").unlink()
    done = subprocess.run([broken / "smoke_test.sh"], env=BARE, capture_output=True, check=False)
    assert done.returncode == 3
    assert b"passed" not in done.stdout


def test_it_finds_all_its_libraries_inside(folder: Path) -> None:
    programs = [folder / "bin" / "intaglio", *(folder / "lib").iterdir()]
    listed = subprocess.run(
        ["ldd", programs[0]], env=BARE, check=True, capture_output=True, text=True
    ).stdout
    found = dict(re.findall(r"^\s+(\S+) => (.*) \(0x", listed, re.MULTILINE))
    assert "libintaglio.so.0" in found
    outside = {name for name, path in found.items() if not path.startswith(f"{folder}/")}
    assert outside
    assert all(GLIBC.match(name) for name in outside), outside
    assert {GLIBC.match(program.name) for program in programs} == {None}


def test_it_runs_with_nothing_but_glibc_beside_it(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(folder, root / "device")
    (root / "proc").mkdir()
    for library in linked(folder / "bin" / "intaglio", folder / "lib" / onnxruntime_library().name):
        if GLIBC.match(library.name):  # each where the loader, or the kernel, looks for it
            target = root / library.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    line = ["/device/bin/intaglio", "generate", "/device/bundle", "--prompt", PROMPT]
    line += ["--steps", "2", "--seed", "5", "--latents-out", "/device.npy", "-o", "/out.png"]
    done = subprocess.run(
        [*with_mounts(ENTER, root), *line], env={"PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "/out.png\n"), done.stderr
    here = intaglio.Pipeline.open(folder / "bundle").generate(PROMPT, steps=2, seeds=5)
    np.testing.assert_array_equal(np.load(root / "device.npy"), here.latents)


def test_it_draws_what_the_installed_command_draws(
    folder: Path, forked_bundle: Path, command: Command
) -> None:
    flags = ["--prompt", PROMPT, "--seed", "9", "--latents-out"]
    command.draw(forked_bundle, *flags[2:], "here.npy", "-o", "here.png")
    line = [folder / "bin" / "intaglio", "generate", folder / "bundle", *flags, "there.npy"]
    line += ["-o", "there.png"]
    subprocess.run(line, cwd=command.folder, env=BARE, check=True, capture_output=True)
    latents = [np.load(command.folder / f"{name}.npy") for name in ("here", "there")]
    np.testing.assert_array_equal(*latents)


def test_its_readme_is_about_it(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    for library in (folder / "lib").iterdir():
        assert f"`lib/{library.name}`" in text
    for where in re.findall(r"`(licenses/[^`]+/)`", text):
        assert any(path.stat().st_size > 500 for path in (folder / where).iterdir())
    assert "see its vendor" not in text
    example = re.search(r"^    (bin/intaglio generate bundle .*)$", text, re.MULTILINE)
    assert example
    model = json.loads((folder / "bundle" / "bundle.json").read_text())
    assert re.search(rf"^\| `bundle/` \| .* MB \| {model['license']} \|$", text, re.MULTILINE)
    line = f"{example[1].replace('picture.png', '/dev/null')} --steps 1"
    subprocess.run(line, shell=True, cwd=folder, env=BARE, check=True, capture_output=True)
    newest = subprocess.run(
        ["readelf", "-W", "--dyn-syms", folder / "bin" / "intaglio", *(folder / "lib").iterdir()],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    minor = max(map(int, re.findall(r"@GLIBC_2\.(\d+)", newest)))
    assert f"glibc 2.{minor} or newer" in text


def test_nothing_in_it_names_this_machine(folder: Path, forked_bundle: Path) -> None:
    names = [str(ROOT), sys.prefix, str(forked_bundle.parent), str(folder.parent)]
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert [name for name in names if name.encode() in content] == [], path


def test_a_bundle_without_encoders_is_tried_on_random_embeddings(tmp_path: Path) -> None:
    write_folder(bundle(text_encoders="none"), tmp_path / "out", ignore)
    done = subprocess.run(
        [tmp_path / "out" / "smoke_test.sh"], env=BARE, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "smoke test passed: every guidance mode ran\n")


REFUSED: dict[str, tuple[int, str, list[str]]] = {
    "not empty": (3, "is not empty", ["folder", "BUNDLE", "-o", "full"]),
    "a file": (3, "is not a folder", ["folder", "BUNDLE", "-o", "file"]),
    "no folder above": (3, "does not exist", ["folder", "BUNDLE", "-o", "absent/out"]),
    "inside the bundle": (2, "in the bundle", ["folder", "changed", "-o", "changed/out"]),
    "inside by a link": (2, "in the bundle", ["folder", "changed", "-o", "link/out"]),
    "the bundle": (2, "in the bundle", ["folder", "changed", "-o", "changed/../changed"]),
    "no bundle": (3, "nowhere", ["folder", "nowhere", "-o", "out"]),
    "changed bundle": (3, "SHA-256 differs", ["folder", "changed", "-o", "out"]),
    "no library": (4, "absent.so", ["folder", "BUNDLE", "-o", "out", "--onnxruntime=absent.so"]),
    "a text for a library": (
        4, "/etc/passwd is not ONNX Runtime's library: give another with --onnxruntime",
        ["folder", "BUNDLE", "-o", "out", "--onnxruntime=/etc/passwd"],
    ),
    "another machine's library": (
        4, "foreign.so is not a program or library for this machine: give one for",
        ["folder", "BUNDLE", "-o", "out", "--onnxruntime=foreign.so"],
    ),
    "no target": (
        2, 'there is no target "boat": write intaglio deploy folder BUNDLE -o OUT, or triton\n',
        ["boat", "BUNDLE", "-o", "out"],
    ),
    "no output": (2, "--output", ["folder", "BUNDLE"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_leave_nothing(entry_point: Command, forked_bundle: Path, name: str) -> None:
    code, says, args = REFUSED[name]
    (entry_point.folder / "full").mkdir()
    (entry_point.folder / "full" / "mine").touch()
    (entry_point.folder / "file").touch()
    elf = bytearray(onnxruntime_library().read_bytes())
    elf[18:20] = b"\0\0"  # e_machine
    (entry_point.folder / "foreign.so").write_bytes(elf)
    (entry_point.folder / "link").symlink_to("changed/transformer")
    weights = shutil.copytree(forked_bundle, entry_point.folder / "changed") / "transformer"
    with (weights / "weights.data").open("r+b") as file:
        file.write(b"changed")
    check(entry_point, code, says, "deploy", *(forked_bundle if a == "BUNDLE" else a for a in args))


def test_the_gpu_build_goes_along_and_cuda_does_not(
    entry_point: Command, forked_bundle: Path, gpu_build: Path
) -> None:
    done = entry_point("deploy", "folder", forked_bundle, "-o", "out", "--onnxruntime", gpu_build)
    assert (done.returncode, done.stderr) == (0, "")
    out = entry_point.folder / "out"
    here = {path.name for path in gpu_build.parent.glob("*.so*")}
    assert here <= {path.name for path in (out / "lib").iterdir()}
    assert not [path.name for path in (out / "lib").iterdir() if path.name.startswith("libcu")]
    needed = next(
        line for line in (out / "README.md").read_text().splitlines() if "`--device cuda`" in line
    )
    assert {"libcublas.so.13", "libcudart.so.13"} <= set(re.findall(r"`(lib[^`]+)`", needed))
    done = subprocess.run([out / "smoke_test.sh", "--device", "cpu"], env=BARE, check=False)
    assert done.returncode == 0


def test_full_standard_output(entry_point: Command, forked_bundle: Path) -> None:
    line = entry_point.line("deploy", "folder", forked_bundle, "-o", entry_point.folder / "out")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    says = f"No space left on device; {entry_point.folder}/out was written"
    assert done.stderr == f"intaglio: cannot write to standard output: {says}\n"
    assert (entry_point.folder / "out" / "bin" / "intaglio").exists()


def test_an_empty_folder_is_filled(entry_point: Command, forked_bundle: Path) -> None:
    (entry_point.folder / "out").mkdir()
    assert entry_point("deploy", "folder", forked_bundle, "-o", "out").returncode == 0
    assert (entry_point.folder / "out" / "bin" / "intaglio").exists()


def test_an_interrupt_leaves_nothing(forked_bundle: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert list(tmp_path.glob(".out.*.partial/bundle/*"))
        if done > total // 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        write_folder(forked_bundle, tmp_path / "out", interrupt)
    assert list(tmp_path.iterdir()) == []


SIGNALLED = """
import os, sys
from intaglio.__main__ import main
from intaglio.deploy import cli, portable
number = int(sys.argv.pop())
def write(bundle, output, progress, programs):
    stop = lambda done, total: done > total // 2 and os.kill(os.getpid(), number)
    return portable.write_folder(bundle, output, stop, programs)
cli.write_folder = write
main()
"""


def signalled(number: int, bundle: Path, output: Path) -> tuple[int, str]:
    """Deploys, and gets a signal when half is copied: exit code and what it said."""
    line = [sys.executable, "-c", SIGNALLED, "deploy", "folder", bundle, "-o", output, str(number)]
    done = subprocess.run(line, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


def test_sigterm_leaves_nothing(forked_bundle: Path, tmp_path: Path) -> None:
    ended = signalled(signal.SIGTERM, forked_bundle, tmp_path / "out")
    assert ended == (143, "intaglio: interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_one_left_is_removed(forked_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.backup.partial").mkdir()  # not its own
    busy = tmp_path / ".out.12345678.partial"
    busy.mkdir()
    with locked(busy):
        assert signalled(signal.SIGKILL, forked_bundle, tmp_path / "out")[0] == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 3
        write_folder(forked_bundle, tmp_path / "out", ignore)
    left = {".out.backup.partial", busy.name, "out"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_engines_stay_behind(entry_point: Command, forked_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(forked_bundle, tmp_path / "bundle")
    engines = bundle / "engines" / "tensorrt-rtx-sm89-float32-0123abcd"
    engines.mkdir(parents=True)
    (engines / "engine.json").write_text("{}")
    done = entry_point("deploy", "folder", bundle, "-o", "out")
    says = "engines were left out, since its manifest does not list them"
    assert (done.returncode, done.stderr.count("\n"), says in done.stderr) == (0, 1, True)
    out = entry_point.folder / "out"
    assert not (out / "bundle" / "engines").exists()
    assert says in (out / "README.md").read_text(encoding="utf-8")

"""The standalone archive of `make dist`, and the deployment folders that are made of it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from intaglio.deploy.archive import write_archive
from intaglio.deploy.libraries import machine_of
from intaglio.deploy.portable import Programs, write_folder
from tests.install.conftest import DIST, WHEELS
from tests.integration.conftest import PROMPT, Command, check, with_mounts
from tests.integration.test_standalone import ENTER

BARE = {"PATH": "/usr/bin:/bin"}  # nothing that says where libraries are
MACHINE = platform.machine()


@pytest.fixture(scope="module")
def archive() -> Path:
    (path,) = DIST.glob("*-linux-*.tar.gz")
    assert re.fullmatch(rf"intaglio-[\d.]+-linux-{MACHINE}\.tar\.gz", path.name)
    return path


@pytest.fixture(scope="module")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    assert top.name == archive.name.removesuffix(".tar.gz")
    return top


def run(script: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([script], env=BARE, capture_output=True, text=True, check=False)


def test_its_smoke_test_needs_no_bundle(unpacked: Path) -> None:
    done = run(unpacked / "smoke_test.sh")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("smoke test passed: the command and ONNX Runtime work\n")


def test_its_smoke_test_can_fail(unpacked: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(unpacked, tmp_path / "broken")
    for library in broken.glob("lib/libonnxruntime.so*"):
        library.unlink()
    done = run(broken / "smoke_test.sh")
    assert done.returncode != 0
    assert "passed" not in done.stdout


def test_it_runs_with_nothing_but_glibc_beside_it(
    unpacked: Path, forked_bundle: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(unpacked, root / "intaglio")
    shutil.copytree(forked_bundle, root / "bundle")
    (root / "proc").mkdir()
    listed = subprocess.run(
        ["ldd", unpacked / "bin" / "intaglio", *unpacked.glob("lib/*")],
        env=BARE, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for library in set(re.findall(r"(/\S+) \(0x", listed)):
        if not re.search(r"/(ld-linux[\w-]*|lib(c|m|dl|rt|pthread))\.so", library):
            continue
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    line = ["/intaglio/bin/intaglio", "generate", "/bundle", "--prompt", PROMPT, "--steps", "1"]
    done = subprocess.run(
        [*with_mounts(ENTER, root), *line, "-o", "/out.png"],
        env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "/out.png\n"), done.stderr


def test_deploy_folder_uses_it(
    entry_point: Command, archive: Path, unpacked: Path, forked_bundle: Path
) -> None:
    done = entry_point("deploy", "folder", forked_bundle, "-o", "out", "--runtime", archive)
    assert (done.returncode, done.stderr) == (0, "")
    out = entry_point.folder / "out"
    for part in ("bin", "lib", "licenses"):
        for path in (unpacked / part).rglob("*"):
            if path.is_file():
                assert (out / path.relative_to(unpacked)).read_bytes() == path.read_bytes()
    done = run(out / "smoke_test.sh")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("smoke test passed: an image of ")


def for_aarch64(archive: Path, folder: Path) -> Path:
    """An archive whose programs say in their headers that they are for aarch64."""
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "changed", filter="data")
    for path in (folder / "changed").glob("*/*/*"):
        content = bytearray(path.read_bytes()) if path.is_file() else b""
        if content[:4] == b"\x7fELF":
            content[18:20] = b"\xb7\0"
            path.write_bytes(content)
    with tarfile.open(folder / "aarch64.tar.gz", "w:gz") as packed:
        packed.add(folder / "changed", ".")
    return folder / "aarch64.tar.gz"


def test_a_folder_for_another_machine_says_so(
    archive: Path, forked_bundle: Path, tmp_path: Path
) -> None:
    other = for_aarch64(archive, tmp_path)
    out = tmp_path / "out"
    write_folder(forked_bundle, out, lambda done, total: None, Programs(runtime=other))
    assert machine_of(out / "bin" / "intaglio") == "aarch64"
    assert "- Linux on aarch64 with glibc" in (out / "README.md").read_text("utf-8")
    done = run(out / "smoke_test.sh")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        f"this folder is for aarch64, and this machine is {MACHINE}: give `intaglio deploy folder`"
        f" the archive for {MACHINE}\n"
    )


REFUSED = {
    "no archive": (3, "cannot read absent.tar.gz", ["--runtime", "absent.tar.gz"]),
    "another archive": (3, "other.tar.gz has no bin/intaglio", ["--runtime", "other.tar.gz"]),
    "both": (2, "leave out --onnxruntime", ["--runtime", "x.tar.gz", "--onnxruntime", "y.so"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_leave_nothing(entry_point: Command, forked_bundle: Path, name: str) -> None:
    code, says, flags = REFUSED[name]
    with tarfile.open(entry_point.folder / "other.tar.gz", "w:gz") as packed:
        packed.add(forked_bundle / "bundle.json", "bundle.json")
    check(entry_point, code, says, "deploy", "folder", forked_bundle, "-o", "out", *flags)


def test_a_deployment_folder_is_no_bundle(
    entry_point: Command, archive: Path, forked_bundle: Path
) -> None:
    out = entry_point.folder / "deployed"
    write_folder(forked_bundle, out, lambda done, total: None, Programs(runtime=archive))
    says = "deployed is a folder of `intaglio deploy`: its bundle is deployed/bundle"
    check(entry_point, 3, says, "generate", "deployed", "--prompt", PROMPT)


def test_two_wheels_make_the_published_archive(archive: Path, tmp_path: Path) -> None:
    (intaglio,) = DIST.glob("intaglio-*.whl")
    (onnxruntime,) = WHEELS.glob("onnxruntime-*.whl")
    written = write_archive(intaglio, onnxruntime, tmp_path)
    with tarfile.open(written) as ours, tarfile.open(archive) as published:
        assert ours.getnames() == published.getnames()


def test_version_as_json(unpacked: Path) -> None:
    command = unpacked / "bin" / "intaglio"
    for flags in (["--version", "--json"], ["--json", "--version"]):
        done = subprocess.run([command, *flags], env=BARE, capture_output=True, check=True)
        about = json.loads(done.stdout)
        assert set(about) == {"intaglio", "onnxruntime", "system", "compiler"}
        assert unpacked.name == f"intaglio-{about['intaglio']}-linux-{MACHINE}"
        assert (unpacked / "lib" / f"libonnxruntime.so.{about['onnxruntime']}").is_file()
        assert about["system"] == f"Linux {MACHINE}"

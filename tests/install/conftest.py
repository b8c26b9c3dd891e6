"""What `make dist` wrote, installed in a root folder with Debian's Python and a shell only."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, with_mounts

DIST = ROOT / "build" / "dist"
WHEELS = ROOT / "build" / "deps" / "wheels"
CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text(encoding="utf-8")
USER = "10001"
# The mounts are gone with the process: the name space is its own.
ENTER = (
    'mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev" && user=$1 && shift'
    ' && exec chroot --userspec="$user:$user" "$0" "$@"'
)


@dataclass
class Root:
    """A root folder, and the commands that enter it."""

    folder: Path

    def line(self, *command: object, user: str = USER) -> list[str]:
        return [*with_mounts(ENTER, self.folder), user, *map(str, command)]

    @property
    def environment(self) -> dict[str, str]:
        inside = {"PATH": "/venv/bin:/usr/bin:/bin:/usr/sbin", "HOME": "/tmp", "LC_ALL": "C.UTF-8"}
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/downloaded"}
        return inside | offline | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(self, *command: object, user: str = USER) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.line(*command, user=user), env=self.environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip


def container_steps() -> list[tuple[dict[str, str], str]]:
    """The RUN instructions of the container file: files by the path inside, and the command."""
    text = CONTAINERFILE.replace("\\\n", " ")
    steps = []
    for step in re.findall(r"^RUN (.*)$", text, re.MULTILINE):
        mounts = dict(re.findall(r"source=(\S+?),target=(\S+)", step))
        command = re.sub(r"--mount=\S+", "", step)
        steps.append(({target: source for source, target in mounts.items()}, command.strip()))
    return steps


@pytest.fixture(scope="session")
def bare_root(tmp_path_factory: pytest.TempPathFactory, forked_bundle: Path) -> Root:
    """The root folder after the steps of the container file, with a bundle in /bundles/model."""
    folder = tmp_path_factory.mktemp("bare") / "root"
    made = ROOT / "build" / "deps" / "bare-root"
    assert not list((made / "dev").iterdir())  # a copy of /dev/zero would fill the disk
    shutil.copytree(made, folder, symlinks=True)
    shutil.copytree(WHEELS, folder / "downloaded")
    folder.joinpath("tmp").chmod(0o1777)
    root = Root(folder)
    for mounts, command in container_steps():
        for target, source in mounts.items():
            inside = folder / target.lstrip("/")
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, inside)
        done = root.run("sh", "-c", f"EXTRAS=serve; {command}", user="0")
        assert done.returncode == 0, done.stdout + done.stderr
        for target in mounts:
            inside = folder / target.lstrip("/")
            shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
    shutil.rmtree(folder / "downloaded")
    shutil.copytree(forked_bundle, folder / "bundles" / "model")
    return root

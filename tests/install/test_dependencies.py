"""The libraries that the C++ part is built with where they are not installed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.install.conftest import ROOT
from tests.integration.conftest import with_mounts

ARCHIVES = ROOT / "build" / "deps" / "archives"
PACKAGES = {
    "nlohmann-json3-dev", "libcli11-dev", "libutf8proc-dev", "zlib1g-dev", "libpng-dev",
    "librhash-dev", "libonnxruntime-dev",
}  # fmt: skip


def table(path: Path) -> dict[str, list[str]]:
    """The rows of a list of archives: version, address or file, and SHA-256, by name."""
    rows = (line.split() for line in path.read_text().splitlines() if line[:1] not in {"", "#"})
    return {name: rest for name, *rest in rows}


def configure(archives: Path, folder: Path) -> str:
    """Configure a build that may use no installed library. Return the error, as one line."""
    line = ["cmake", "-S", ROOT, "-B", folder / "tree", "-DINTAGLIO_SYSTEM_LIBRARIES=OFF"]
    alone = with_mounts('exec unshare -n "$@"', folder)  # a name space without a network
    done = subprocess.run(
        [*alone, *line, f"-DINTAGLIO_ARCHIVES={archives}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    return " ".join(done.stderr.split())


def test_without_network_one_sentence_names_what_is_missing(tmp_path: Path) -> None:
    said = configure(tmp_path / "empty", tmp_path)
    assert said.count("CMake Error") == 1
    assert "Intaglio needs nlohmann-json, cli11, zlib, libpng, utf8proc, rhash, the headers" in said
    assert "v3.11.3.tar.gz cannot be downloaded (" in said
    assert "-DINTAGLIO_ARCHIVES=FOLDER" in said
    assert set(said.replace(")", " ").split()) >= PACKAGES


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    archives = shutil.copytree(ARCHIVES, tmp_path / "archives")
    file = archives / table(archives / "archives.txt")["utf8proc"][1]
    with file.open("ab") as stream:
        stream.write(b"more")
    assert f"{file} does not have the SHA-256" in configure(archives, tmp_path)


@pytest.mark.parametrize("name", ["nlohmann-json", "utf8proc"])
def test_the_pinned_archive_is_the_one_that_debian_has(name: str) -> None:
    """Debian packs the others again, or CI's mirror lacks them."""
    pinned, here = table(ROOT / "cmake" / "archives.txt")[name], table(ARCHIVES / "archives.txt")
    content = (ARCHIVES / here[name][1]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == pinned[2]

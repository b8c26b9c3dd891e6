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
WITHOUT_SYSTEM = "-DINTAGLIO_SYSTEM_LIBRARIES=OFF"


def table(path: Path) -> dict[str, list[str]]:
    """The rows of a list of archives: version, address or file, and SHA-256, by name."""
    rows = (line.split() for line in path.read_text().splitlines() if line[:1] not in {"", "#"})
    return {name: rest for name, *rest in rows}


def configure(archives: Path, folder: Path, *settings: str) -> str:
    """Configure a build without a network. Return the error, as one line."""
    line = ["cmake", "-S", ROOT, "-B", folder / "tree", *settings]
    alone = with_mounts('exec unshare -n "$@"', folder)  # a name space of its own
    done = subprocess.run(
        [*alone, *line, f"-DINTAGLIO_ARCHIVES={archives}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    return " ".join(done.stderr.split())


def test_without_network_one_sentence_names_what_is_missing(tmp_path: Path) -> None:
    """What an earlier configuration found in the system is not used."""
    found = ("UTF8PROC_LIBRARY", "UTF8PROC_INCLUDE_DIR", "RHASH_LIBRARY", "RHASH_INCLUDE_DIR",
             "ONNXRUNTIME_INCLUDE_DIR")  # fmt: skip
    stale = [f"-D{name}:FILEPATH=/usr/lib/stale" for name in found]
    said = configure(tmp_path / "empty", tmp_path, WITHOUT_SYSTEM, *stale)
    assert said.count("CMake Error") == 1
    assert "Intaglio needs nlohmann-json, cli11, zlib, libpng, utf8proc, rhash, the headers" in said
    assert "v3.11.3.tar.gz cannot be downloaded (" in said
    assert "-DINTAGLIO_ARCHIVES=FOLDER" in said
    assert "Debian" not in said


def test_packages_are_named_where_they_help(tmp_path: Path) -> None:
    said = configure(tmp_path / "empty", tmp_path, "-DCMAKE_DISABLE_FIND_PACKAGE_PNG=ON")
    assert set(said.replace(")", " ").split()) >= {"zlib1g-dev", "libpng-dev"}


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    archives = shutil.copytree(ARCHIVES, tmp_path / "archives")
    file = archives / table(archives / "archives.txt")["utf8proc"][1]
    with file.open("ab") as stream:
        stream.write(b"more")
    assert f"{file} does not have the SHA-256" in configure(archives, tmp_path, WITHOUT_SYSTEM)


@pytest.mark.parametrize("name", ["nlohmann-json", "utf8proc"])
def test_the_pinned_archive_is_the_one_that_debian_has(name: str) -> None:
    """Debian packs the others again, or CI's mirror lacks them."""
    pinned, here = table(ROOT / "cmake" / "archives.txt")[name], table(ARCHIVES / "archives.txt")
    content = (ARCHIVES / here[name][1]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == pinned[2]

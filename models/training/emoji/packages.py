"""The npm packages that the pictures come from: download, checksums and attribution."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.training.data import DataError


@dataclass(frozen=True)
class Package:
    """A version of an npm package with the SHA-256 of its tarball."""

    name: str
    version: str
    sha256: str
    license: str
    author: str
    source: str

    @property
    def file(self) -> str:
        """The name that `npm pack` gives to the tarball."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    def members(self, folder: Path) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each file of the tarball in `folder`."""
        with tarfile.open(folder / self.file) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None:
                    yield member.name.removeprefix("package/"), file.read()

    def read_json(self, folder: Path, *names: str) -> list[Any]:
        """Return the JSON files `names` of the tarball in `folder`."""
        with tarfile.open(folder / self.file) as archive:
            return [json.load(archive.extractfile(f"package/{n}") or _absent(n)) for n in names]


def _absent(name: str) -> Any:
    raise DataError(f"the package has no file {name}")


NOTO = Package(
    "@iconify-json/noto",
    "1.2.9",
    "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "Apache-2.0",
    "Google Inc",
    "https://github.com/googlefonts/noto-emoji",
)
FLUENT_FLAT = Package(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "MIT",
    "Microsoft Corporation",
    "https://github.com/microsoft/fluentui-emoji",
)
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "MIT",
    "Microsoft Corporation, packaged by LobeHub",
    "https://github.com/lobehub/fluent-emoji",
)
NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT",
    "Miles Johnson",
    "https://github.com/milesj/emojibase",
)
PACKAGES = (NOTO, FLUENT_FLAT, FLUENT_3D, NAMES)


def default_cache() -> Path:
    """Return the folder for data, checkpoints and logs, in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "intaglio" / "emoji"


def verify(path: Path, package: Package) -> None:
    """Raise DataError unless the tarball at `path` is the one whose checksum `package` has."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        path.unlink()
        raise DataError(
            f"{path.name} has the SHA-256 {found}, but {package.sha256} was expected; the file "
            "was removed, so run the command again to download it once more"
        )


def download(folder: Path) -> None:
    """Bring the missing tarballs to `folder` with `npm pack`, verify all, write ATTRIBUTION.md."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        path = folder / package.file
        if not path.exists():
            _pack(package, folder)
        verify(path, package)
    (folder / "ATTRIBUTION.md").write_text(attribution())


def _pack(package: Package, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            f"npm, which downloads the emoji sets, is not installed: install it, or put "
            f"{package.file} into {folder}"
        )
    spec = f"{package.name}@{package.version}"
    done = subprocess.run(
        [npm, "pack", "--silent", "--ignore-scripts", spec],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode or not (folder / package.file).exists():
        raise DataError(f"npm could not download {spec}: {done.stderr.strip()[-300:]}")


def attribution() -> str:
    """Return a Markdown page that names each package with its author, licence and checksum."""
    lines = [
        "# Sources of the training pictures",
        "",
        "The pictures were rendered at 64x64 pixels and put on plain backgrounds.",
        "",
        "| package | author | licence | source | SHA-256 of the package |",
        "| --- | --- | --- | --- | --- |",
    ]
    for p in PACKAGES:
        lines.append(
            f"| {p.name} {p.version} | {p.author} | {p.license} | {p.source} | {p.sha256} |"
        )
    return "\n".join(lines) + "\n"

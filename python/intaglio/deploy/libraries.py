"""Which shared libraries a program needs, and which of them belong to the system it runs on."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from mmap import PROT_READ, mmap
from pathlib import Path

from intaglio import _core

# glibc and its loader are one piece and the system's: the loader's path is written into every
# program, and the system's name service and locales belong to its version. NVIDIA's driver fits
# the kernel's module. Everything else is taken along, libstdc++ and libgcc_s too: they look for
# nothing outside, and small systems have none or older ones.
_SYSTEM = re.compile(
    r"linux-vdso|linux-gate|ld-linux|ld64|libcuda\.so|libnvidia-"
    r"|lib(c|m|mvec|dl|rt|pthread|util|resolv|anl|nsl|thread_db)\.so"
)
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)\0")


@dataclass(frozen=True)
class Linked:
    """What the loader finds for some programs and libraries.

    Attributes:
        found: by the name they are asked for, without those of the system.
        missing: names that were not found.
    """

    found: dict[str, Path]
    missing: list[str]


def linked(programs: Iterable[Path]) -> Linked:
    """The libraries that `programs` need, theirs included."""
    found: dict[str, Path] = {}
    missing: set[str] = set()
    for program in programs:
        try:
            done = subprocess.run(
                ["ldd", program], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}
            )
        except OSError as error:
            raise _core.UnavailableError(
                f"cannot list the libraries of {program}, since ldd cannot be run"
                f" ({error.strerror}): install ldd"
            ) from error
        except subprocess.CalledProcessError as error:
            raise _core.UnavailableError(
                f"{program} is no program or library for this machine: give one for"
                f" {platform.machine()}, ONNX Runtime's with --onnxruntime"
            ) from error
        for name, path in re.findall(r"^\s+(\S+) => (not found|/.+) ?", done.stdout, re.MULTILINE):
            if _SYSTEM.match(name):
                continue
            if path.startswith("not found"):
                missing.add(name)
            else:
                found[name] = Path(re.sub(r" \(0x[0-9a-f]+\)\s*$", "", path)).resolve()
    return Linked(found, sorted(missing - set(found)))


def glibc_needed(files: Sequence[Path]) -> str:
    """The oldest glibc that has every symbol version these files ask for: "2.34"."""
    newest = 0
    for file in files:
        with file.open("rb") as stream, mmap(stream.fileno(), 0, prot=PROT_READ) as content:
            newest = max([newest, *map(int, _GLIBC.findall(content))])
    return f"2.{newest}"


def copyright_of(library: Path) -> Path | None:
    """The copyright file of the Debian package that `library` comes from."""
    try:
        owner = subprocess.run(
            ["dpkg", "-S", f"*/{library.name}"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return package_copyright(owner.split(":")[0])


def package_copyright(package: str) -> Path | None:
    """What a Debian package says of its licence."""
    path = Path("/usr/share/doc") / package / "copyright"
    return path if path.is_file() else None

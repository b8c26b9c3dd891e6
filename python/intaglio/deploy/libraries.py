"""The shared libraries that a program needs, without those that belong to the system."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from mmap import PROT_READ, mmap
from pathlib import Path

from intaglio import _core

# glibc is left to the system, since every program contains the path of its loader, and name service
# and locales depend on its version. NVIDIA's driver has to match the kernel module. All other
# libraries are included, even libstdc++ and libgcc_s, which small systems lack or have in an older
# version.
_SYSTEM = re.compile(
    r"linux-vdso|linux-gate|ld-linux|ld64|libcuda\.so|libnvidia-"
    r"|lib(c|m|mvec|dl|rt|pthread|util|resolv|anl|nsl|thread_db)\.so"
)
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)\0")


@dataclass(frozen=True)
class Linked:
    """The libraries that the loader finds for some programs.

    Attributes:
        found: the libraries' paths by name, without those of the system.
        missing: names of libraries that were not found.
    """

    found: dict[str, Path]
    missing: list[str]


def linked(programs: Iterable[Path]) -> Linked:
    """Return the libraries that `programs` need, directly or through other libraries."""
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
                f"{program} is not a program or library for this machine: give one for"
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


# By the number in ELF's header.
_MACHINES = {0x3E: "x86_64", 0xB7: "aarch64"}


def machine_of(program: Path) -> str:
    """Return the machine that a program or library is for, as `uname -m` names it."""
    with program.open("rb") as file:
        header = file.read(20)
    number = int.from_bytes(header[18:20], "little")
    if not header.startswith(b"\x7fELF") or number not in _MACHINES:
        raise _core.UnavailableError(
            f"{program} is not a program or library for Linux on {' or '.join(_MACHINES.values())}"
        )
    return _MACHINES[number]


def glibc_needed(files: Sequence[Path]) -> str:
    """Return the oldest version of glibc that can run these files, such as "2.34"."""
    newest = 0
    for file in files:
        with file.open("rb") as stream, mmap(stream.fileno(), 0, prot=PROT_READ) as content:
            newest = max([newest, *map(int, _GLIBC.findall(content))])
    return f"2.{newest}"


def copyright_of(library: Path) -> Path | None:
    """Return the copyright file of the Debian package that contains `library`, if there is one."""
    try:
        owner = subprocess.run(
            ["dpkg", "-S", f"*/{library.name}"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return package_copyright(owner.split(":")[0])


def package_copyright(package: str) -> Path | None:
    """Return the copyright file of a Debian package, if it is installed."""
    path = Path("/usr/share/doc") / package / "copyright"
    return path if path.is_file() else None

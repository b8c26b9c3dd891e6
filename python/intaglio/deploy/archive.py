"""The standalone archive: command and libraries for one kind of machine, without Python or bundle.

`python -m intaglio.deploy.archive INTAGLIO.whl ONNXRUNTIME.whl -o FOLDER` writes it from two wheels
of the same architecture, which need not be this machine's.
"""

from __future__ import annotations

import argparse
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from intaglio import _core
from intaglio.deploy.libraries import glibc_needed, machine_of, package_copyright
from intaglio.deploy.texts import archive_readme, archive_smoke_test

# Folders of the wheels that hold licence texts and programs, and where these go.
_FOLDERS = {
    "intaglio/bin/": "bin/",
    "intaglio/lib/libintaglio": "lib/libintaglio",
    "intaglio/share/intaglio/licenses/": "licenses/",
    "onnxruntime/capi/libonnxruntime": "lib/libonnxruntime",
    "onnxruntime/LICENSE": "licenses/onnxruntime/LICENSE",
    "onnxruntime/ThirdPartyNotices.txt": "licenses/onnxruntime/ThirdPartyNotices.txt",
}
# Wheels leave these to the system, but small systems lack them or have older versions.
_COMPILERS_OWN = ("libstdc++.so.6", "libgcc_s.so.1")


def write_archive(intaglio: Path, onnxruntime: Path, output: Path) -> Path:
    """Write intaglio-VERSION-OS-ARCH.tar.gz into the folder `output`, and return its path.

    Args:
        intaglio: Intaglio's wheel.
        onnxruntime: ONNX Runtime's wheel for the same architecture.
        output: an existing folder.

    Raises:
        UnavailableError: the wheels are not for one architecture, or there is no compiler for it.
    """
    version = intaglio.name.split("-")[1]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for wheel in (intaglio, onnxruntime):
            _extract(wheel, folder)
        machines = {machine_of(path) for path in _programs(folder)}
        if len(machines) != 1:
            raise _core.UnavailableError(
                f"{intaglio.name} and {onnxruntime.name} are for different machines"
                f" ({', '.join(sorted(machines))}): give wheels for the same one"
            )
        machine = machines.pop()
        _add_compilers_libraries(folder, machine)
        glibc = glibc_needed(_programs(folder))
        (folder / "README.md").write_text(archive_readme(version, machine, glibc), "utf-8")
        script = folder / "smoke_test.sh"
        script.write_text(archive_smoke_test(machine), "utf-8")
        script.chmod(0o755)
        name = f"intaglio-{version}-linux-{machine}"
        path = output / f"{name}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder, name, filter=_anonymous)
    return path


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a standalone archive into `folder`. Return the folder of its files.

    Raises:
        InputError: it is no such archive.
    """
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _core.InputError(f"cannot read {archive}: {error}") from None
    commands = list(folder.glob("*/bin/intaglio"))
    if len(commands) != 1:
        raise _core.InputError(
            f"{archive} has no bin/intaglio: give the archive intaglio-VERSION-OS-ARCH.tar.gz that"
            " `make dist` writes"
        )
    return commands[0].parents[1]


def _extract(wheel: Path, folder: Path) -> None:
    with ZipFile(wheel) as opened:
        for name in opened.namelist():
            target = next(
                (name.replace(f, t, 1) for f, t in _FOLDERS.items() if name.startswith(f)), ""
            )
            if ".dist-info/licenses/" in name:
                target = f"licenses/intaglio/{Path(name).name}"
            if target and not name.endswith("/"):
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(opened.read(name))
                path.chmod(0o755 if target.startswith("bin/") else 0o644)


def _programs(folder: Path) -> list[Path]:
    return [path for part in ("bin", "lib") for path in sorted((folder / part).iterdir())]


def _add_compilers_libraries(folder: Path, machine: str) -> None:
    compiler = f"{machine}-linux-gnu-g++"
    for name in _COMPILERS_OWN:
        try:
            printed = subprocess.run(
                [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
        except OSError:
            raise _core.UnavailableError(
                f"{name} for {machine} comes from the compiler {compiler}, which is not here: on"
                f" Debian, install g++-{machine.replace('_', '-')}-linux-gnu"
            ) from None
        library = Path(printed).resolve()
        (folder / "lib" / name).write_bytes(library.read_bytes())
        for package in ("libstdc++6", "libgcc-s1"):
            text = package_copyright(package)
            if text:
                path = folder / "licenses" / name / "copyright"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text.read_bytes())


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    if entry.isdir():
        entry.mode = 0o755
    return entry


def main() -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("intaglio", type=Path, metavar="INTAGLIO.whl")
    parser.add_argument("onnxruntime", type=Path, metavar="ONNXRUNTIME.whl")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args()
    try:
        print(write_archive(given.intaglio, given.onnxruntime, given.output))
    except _core.Error as error:
        parser.exit(error.exit_code, f"intaglio: {error}\n")


if __name__ == "__main__":
    main()

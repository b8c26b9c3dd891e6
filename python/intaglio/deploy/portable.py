"""The target `folder`: one folder with bundle, command and libraries, which can be moved."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from intaglio import _core
from intaglio.deploy.archive import unpack
from intaglio.deploy.contents import Deployment, collect, collect_from_archive
from intaglio.deploy.libraries import machine_of
from intaglio.deploy.output import Progress, check_output, copy_sources, temporary_output
from intaglio.deploy.texts import readme, smoke_test


def write_folder(
    bundle: Path,
    output: Path,
    onnxruntime: Path | None,
    progress: Progress,
    runtime: Path | None = None,
) -> Deployment:
    """Write the folder `output`, which appears complete or not at all.

    Args:
        bundle: the bundle's folder.
        output: the folder to write.
        onnxruntime: ONNX Runtime's library, or None for that of the Python package.
        progress: called while files are copied.
        runtime: a standalone archive whose programs are taken instead of the installed ones. It may
            be for another machine.

    Raises:
        InputError: the bundle or the archive is invalid, or the output cannot be written.
        UnavailableError: Intaglio's command or ONNX Runtime's library is missing.
    """
    check_output(output, bundle)
    _core.Bundle.open(bundle)
    with TemporaryDirectory() as temporary:
        if runtime:
            deployment = collect_from_archive(bundle, unpack(runtime, Path(temporary)))
        else:
            deployment = collect(bundle, onnxruntime)
        with temporary_output(output, deployment.bytes) as work:
            copy_sources(deployment, work, progress)
            (work / "README.md").write_text(readme(deployment, work), encoding="utf-8")
            script = work / "smoke_test.sh"
            machine = machine_of(work / "bin" / "intaglio")
            script.write_text(smoke_test(deployment.manifest, machine), encoding="utf-8")
            mode = script.stat().st_mode
            script.chmod(mode | (mode & 0o444) >> 2)  # whoever may read it may run it
    return deployment

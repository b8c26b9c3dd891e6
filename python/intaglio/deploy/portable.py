"""The target `folder`: one folder with bundle, command and libraries, which can be moved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from intaglio import _core
from intaglio.deploy.archive import unpack
from intaglio.deploy.contents import Deployment, collect, collect_from_archive
from intaglio.deploy.libraries import machine_of
from intaglio.deploy.output import Progress, check_output, copy_sources, temporary_output
from intaglio.deploy.texts import readme, smoke_test


@dataclass(frozen=True)
class Programs:
    """Where the programs of a folder come from; without paths, from what is installed here.

    Attributes:
        onnxruntime: ONNX Runtime's library.
        provider: the library of an execution provider's plugin, which comes along with its package.
        runtime: a standalone archive, which may be for another machine.
    """

    onnxruntime: Path | None = None
    provider: Path | None = None
    runtime: Path | None = None


def write_folder(
    bundle: Path,
    output: Path,
    progress: Progress,
    programs: Programs = Programs(),
) -> Deployment:
    """Write the folder `output`, which appears complete or not at all.

    Args:
        bundle: the bundle's folder.
        output: the folder to write.
        progress: called while files are copied.
        programs: where the programs come from.

    Raises:
        UsageError: `programs.provider` is not the library of an execution provider's plugin.
        InputError: the bundle or the archive is invalid, or the output cannot be written.
        UnavailableError: Intaglio's command or ONNX Runtime's library is missing.
    """
    check_output(output, bundle)
    _core.Bundle.open(bundle)
    with TemporaryDirectory() as temporary:
        if programs.runtime:
            deployment = collect_from_archive(bundle, unpack(programs.runtime, Path(temporary)))
        else:
            deployment = collect(bundle, programs.onnxruntime, programs.provider)
        with temporary_output(output, deployment.bytes) as work:
            copy_sources(deployment, work, progress)
            (work / "README.md").write_text(readme(deployment, work), encoding="utf-8")
            script = work / "smoke_test.sh"
            machine = machine_of(work / "bin" / "intaglio")
            script.write_text(smoke_test(deployment.manifest, machine), encoding="utf-8")
            mode = script.stat().st_mode
            script.chmod(mode | (mode & 0o444) >> 2)  # whoever may read it may run it
    return deployment

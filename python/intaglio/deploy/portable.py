"""The target `folder`: one folder with bundle, command and libraries, which can be moved."""

from __future__ import annotations

from pathlib import Path

from intaglio import _core
from intaglio.deploy.contents import Deployment, collect
from intaglio.deploy.output import Progress, check_output, copy_sources, temporary_output
from intaglio.deploy.texts import readme, smoke_test


def write_folder(
    bundle: Path,
    output: Path,
    onnxruntime: Path | None,
    progress: Progress,
    provider: Path | None = None,
) -> Deployment:
    """Write the folder `output`, which appears complete or not at all.

    Raises:
        UsageError: `provider` is not the library of an execution provider's plugin.
        InputError: the bundle is invalid, or the output cannot be written.
        UnavailableError: Intaglio's command or ONNX Runtime's library is missing.
    """
    check_output(output, bundle)
    _core.Bundle.open(bundle)
    deployment = collect(bundle, onnxruntime, provider)
    with temporary_output(output, deployment.bytes) as work:
        copy_sources(deployment, work, progress)
        (work / "README.md").write_text(readme(deployment, work), encoding="utf-8")
        script = work / "smoke_test.sh"
        script.write_text(smoke_test(deployment.manifest), encoding="utf-8")
        mode = script.stat().st_mode
        script.chmod(mode | (mode & 0o444) >> 2)  # whoever may read it may run it
    return deployment

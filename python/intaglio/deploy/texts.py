"""The README of a deployment, and the smoke test of the target `folder`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from intaglio import _core
from intaglio.deploy.contents import Deployment
from intaglio.deploy.libraries import glibc_needed, machine_of
from intaglio.serve.triton_tensors import MAX_BATCH, inputs


def readme(deployment: Deployment, folder: Path) -> str:
    """Return the README of the target `folder`: use, requirements, sizes and licences."""
    manifest = deployment.manifest
    paths = [path for part in ("bin", "lib") for path in sorted((folder / part).rglob("*"))]
    programs = [path for path in paths if path.is_file()]
    return _template("README.md").substitute(
        name=manifest["name"],
        source=manifest["source"],
        license=manifest["license"],
        example=f"bin/intaglio generate bundle {subject_flags(manifest)} -o picture.png",
        machine=machine_of(folder / "bin" / "intaglio"),
        glibc=glibc_needed(programs),
        gpu=_gpu(deployment),
        rows="\n".join(_rows(folder, programs, manifest["license"])),
    )


def repository_readme(deployment: Deployment, name: str) -> str:
    """Return the README of the target `triton`: use, requirements and a client."""
    manifest = deployment.manifest
    subject = 'tensor("class_label", [0], "INT64")'
    if "classes" not in manifest:
        subject = 'tensor("prompt", [b"a photograph"], "BYTES")'
    rows = [
        f"| `{tensor.name}`{'' if tensor.optional else ', required'} |"
        f" {tensor.data_type.removeprefix('TYPE_')} | {tensor.count} |"
        for tensor in inputs(manifest)
    ]
    return _template("README-triton.md").substitute(
        name=name,
        source=manifest["source"],
        license=manifest["license"],
        version=_core.__version__,
        batch=MAX_BATCH,
        subject=subject,
        rows="\n".join(rows),
        gpu="\n".join(f"- {remark}." for remark in deployment.remarks),
    )


def archive_readme(version: str, machine: str, glibc: str) -> str:
    """Return the README of the standalone archive."""
    return _template("README-archive.md").substitute(version=version, machine=machine, glibc=glibc)


def archive_smoke_test(machine: str) -> str:
    """Return the script of the standalone archive, which needs no bundle."""
    return _template("smoke_test_archive.sh").substitute(check_machine=_check_machine(machine))


def smoke_test(manifest: dict[str, Any], machine: str) -> str:
    """Return the script, which runs a bundle without text encoders on random embeddings."""
    name = "smoke_test.sh" if _draws_by_itself(manifest) else "smoke_test_bench.sh"
    return _template(name).substitute(
        subject=subject_flags(manifest), check_machine=_check_machine(machine)
    )


def _check_machine(machine: str) -> str:
    return _template("check_machine.sh").substitute(machine=machine).rstrip("\n")


def subject_flags(manifest: dict[str, Any]) -> str:
    """Return flags that say what to draw with the bundle."""
    if "classes" in manifest:
        return "--class 0"
    return (
        '--prompt "a photograph"'
        if _draws_by_itself(manifest)
        else "--prompt-embeds FILE.safetensors"
    )


def _draws_by_itself(manifest: dict[str, Any]) -> bool:
    return "classes" in manifest or bool(manifest["prompt"]["encoders"])


def _template(name: str) -> Template:
    class PercentTemplate(Template):  # since the shell uses the dollar sign
        delimiter = "%"

    return PercentTemplate((files("intaglio.deploy") / "templates" / name).read_text("utf-8"))


def _gpu(deployment: Deployment) -> str:
    lines = [f"- {remark}." for remark in deployment.remarks]
    if deployment.left_to_cuda:
        names = ", ".join(f"`{name}`" for name in deployment.left_to_cuda)
        lines.append(
            "- For `--device cuda` or `tensorrt`: NVIDIA's driver, and these libraries of CUDA,"
            f" cuDNN and TensorRT: {names}."
        )
    else:
        lines.insert(0, "- No GPU is needed: it runs on the processor.")
    return "\n".join(lines)


def _rows(folder: Path, programs: list[Path], model_license: str) -> list[str]:
    bundle = sum(path.stat().st_size for path in (folder / "bundle").rglob("*") if path.is_file())
    rows = [f"| `bundle/` | {_size(bundle)} | {model_license} |"]
    for path in programs:
        licenses = folder / "licenses" / _license_of(path)
        where = f"`licenses/{licenses.name}/`" if licenses.is_dir() else "see its vendor"
        name, size = path.relative_to(folder), _size(path.stat().st_size)
        rows.append(f"| `{name}` | {size} | {where} |")
    return rows


def _license_of(path: Path) -> str:
    name = path.name
    if path.parent.name.startswith("onnxruntime_ep_"):  # the package of a provider's plugin
        return path.parent.name
    for start, license_name in (
        ("intaglio", "intaglio"), ("libintaglio", "intaglio"),
        ("libonnxruntime", "onnxruntime"),
    ):  # fmt: skip
        if name.startswith(start):
            return license_name
    return name


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"

"""What tests/gpu/run.sh left in a folder, as one page of Markdown."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

PACKAGES = ("onnxruntime-gpu", "tensorrt", "torch", "diffusers")


def outcome(path: Path) -> str:
    """A table row for one JUnit file: tests, failures, skips, seconds."""
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    count = {
        key: sum(int(suite.get(key) or 0) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    }
    seconds = sum(float(suite.get("time") or 0) for suite in suites)
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    return f"| {path.stem} | {passed} | {failed} | {count['skipped']} | {seconds:.0f} |"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def page(folder: Path) -> str:
    tables = [table.read_text() for table in sorted(folder.glob("parity-*.md"))]
    benches = [
        f"## {bench.stem}\n\n```\n{bench.read_text()}```"
        for bench in sorted(folder.glob("bench-*.txt"))
    ]
    return "\n\n".join(
        [
            "# Report of tests/gpu/run.sh",
            f"```\n{(folder / 'nvidia-smi.txt').read_text()}```",
            "\n".join(f"- {package} {installed(package)}" for package in PACKAGES),
            "| run | passed | failed | skipped | s |\n|---|---|---|---|---|\n"
            + "\n".join(outcome(path) for path in sorted(folder.glob("*.xml"))),
            *tables,
            *benches,
        ]
    )


if __name__ == "__main__":
    print(page(Path(sys.argv[1])))

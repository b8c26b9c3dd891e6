"""What libintaglio shows to the program that loads it."""

from __future__ import annotations

import subprocess

import pytest

from tests.integration.conftest import EXECUTABLE

LIBRARY = EXECUTABLE.with_name("libintaglio.so")


@pytest.fixture(scope="module")
def exported() -> list[str]:
    """Names of the symbols that others can bind to, mangled."""
    words = ["nm", "--dynamic", "--defined-only", "--format=posix", str(LIBRARY)]
    listed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return [line.split()[0] for line in listed.splitlines()]


def test_only_its_own_names_are_exported(exported: list[str]) -> None:
    """Another library's ONNX Runtime, CLI11 or JSON in the same process is left alone."""
    own = ("_ZN8intaglio", "_ZNK8intaglio", "_ZTIN8intaglio", "_ZTSN8intaglio", "_ZTVN8intaglio")
    assert [name for name in exported if not name.startswith(own)] == []


@pytest.mark.parametrize(
    "name",
    [
        "_ZTIN8intaglio10InputErrorE",  # caught outside
        "_ZN8intaglio8Pipeline4open",
        "_ZN8intaglio11run_command",
        "_ZN8intaglio8read_png",
    ],
)
def test_the_public_ones_are(exported: list[str], name: str) -> None:
    assert any(line.startswith(name) for line in exported)

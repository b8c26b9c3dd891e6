"""Test which symbols libintaglio exports."""

from __future__ import annotations

import subprocess

import pytest

from tests.integration.conftest import EXECUTABLE

LIBRARY = EXECUTABLE.with_name("libintaglio.so")


@pytest.fixture(scope="module")
def exported() -> list[str]:
    """Return the mangled names of the exported symbols."""
    words = ["nm", "--dynamic", "--defined-only", "--format=posix", str(LIBRARY)]
    listed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return [line.split()[0] for line in listed.splitlines()]


def test_only_its_own_names_are_exported(exported: list[str]) -> None:
    """Other copies of ONNX Runtime, CLI11 or the JSON library in the process are not affected."""
    own = ("_ZN8intaglio", "_ZNK8intaglio", "_ZTIN8intaglio", "_ZTSN8intaglio", "_ZTVN8intaglio")
    assert [name for name in exported if not name.startswith(own)] == []


@pytest.mark.parametrize(
    "name",
    [
        "_ZTIN8intaglio10InputErrorE",  # a program that uses the library catches it
        "_ZN8intaglio8Pipeline4open",
        "_ZN8intaglio11run_command",
        "_ZN8intaglio8read_png",
    ],
)
def test_the_public_ones_are(exported: list[str], name: str) -> None:
    assert any(line.startswith(name) for line in exported)

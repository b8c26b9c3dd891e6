"""The `intaglio` command of the Python package, and what importing the package costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import intaglio
from intaglio import _core
from intaglio.onnxruntime_library import onnxruntime_library

HEAVY = {"torch", "diffusers", "transformers", "onnxruntime", "onnx", "intaglio_export"}


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=300
    )


def command(*args: str, missing: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `intaglio ARGS` where the package `missing` cannot be imported."""
    hide = f"sys.modules[{missing!r}] = None" if missing else ""
    return python(f"import sys; {hide}\nfrom intaglio.__main__ import main\nmain()", *args)


def test_import_and_a_whole_run_need_nothing_heavy(forked_bundle: Path) -> None:
    run = python(
        "import sys, intaglio; intaglio.Pipeline.open(sys.argv[1]).generate('a boot', steps=1);"
        "print(*{name.split('.')[0] for name in sys.modules})",
        str(forked_bundle),
    )
    assert run.returncode == 0, run.stderr
    assert not HEAVY & set(run.stdout.split())


def test_the_library_of_pythons_package_is_found() -> None:
    import onnxruntime

    library = onnxruntime_library()
    assert library
    assert library.parent == Path(onnxruntime.__file__).parent / "capi"


def test_help_lists_all_commands_and_loads_none() -> None:
    run = command("--help", missing="typer")
    assert run.returncode == 0, run.stderr
    listed = [line.split()[0] for line in run.stdout.splitlines() if line.startswith("  ")]
    assert {"generate", "inspect", "bench", "export"} <= set(listed)
    assert "turn a diffusers pipeline into a bundle" in run.stdout


def test_version() -> None:
    run = command("--version")
    assert run.stdout == f"intaglio {intaglio.__version__}\n"
    assert intaglio.__version__ == _core.__version__


def test_a_subcommand_of_a_python_package() -> None:
    run = command("export", "--help")
    assert run.returncode == 0, run.stderr
    assert "intaglio export" in run.stdout
    assert command("export", "--no-such-flag").returncode == 2


def test_a_missing_extra_is_one_sentence(tmp_path: Path) -> None:
    for package in ("torch", "typer"):
        run = command("export", str(tmp_path), "-o", str(tmp_path / "out"), missing=package)
        assert run.returncode == (4 if package == "torch" else 1), run.stderr
    run = command("export", str(tmp_path), "-o", str(tmp_path / "out"), missing="torch")
    assert run.stderr.strip() == (
        'intaglio: export needs the Python package torch: pip install "intaglio[export]"'
    )
    assert run.stdout == ""
    assert not (tmp_path / "out").exists()


def test_everything_else_is_the_cpp_command() -> None:
    run = command("draw")
    assert run.returncode == 2
    assert "draw" in run.stderr
    assert command().returncode == 2
    assert command("generate", "--no-such-flag").returncode == 2


def test_generate_writes_the_files_that_save_writes(forked_bundle: Path, tmp_path: Path) -> None:
    pipeline = intaglio.Pipeline.open(forked_bundle)
    ours = pipeline.generate("a boot", seeds=[1, 2], steps=3).save(tmp_path / "ours.png")
    flags = ["--prompt", "a boot", "--seeds", "1,2", "--steps", "3"]
    run = command("generate", str(forked_bundle), *flags, "-o", str(tmp_path / "theirs.png"))
    assert run.returncode == 0, run.stderr
    theirs = [Path(line) for line in run.stdout.splitlines()]
    assert theirs == [tmp_path / "theirs-0.png", tmp_path / "theirs-1.png"]
    for one, other in zip(ours, theirs, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_library_that_the_user_names_is_used(forked_bundle: Path, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "libonnxruntime.so")
    flags = ["--prompt", "a boot", "--onnxruntime", nowhere, "-o", str(tmp_path / "x.png")]
    run = command("generate", str(forked_bundle), *flags)
    assert run.returncode == 4
    assert nowhere in run.stderr


def test_arguments_that_are_no_text_reach_the_command(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "intaglio", "inspect", b"/nowhere/\xff"]
    run = subprocess.run(program, capture_output=True, timeout=300)
    assert run.returncode == 3
    assert b"/nowhere/" in run.stderr

"""The `intaglio` command: the C++ program, and subcommands that are written in Python."""

from __future__ import annotations

import ast
import functools
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from intaglio import _core
from intaglio.hub import HubName
from intaglio.onnxruntime_library import onnxruntime_library

GROUP = "intaglio.commands"
# Subcommands of the C++ program that take --onnxruntime.
RUNNERS = {"generate", "embed", "features", "bench", "devices", "inspect"}
# Those that take a bundle.
READERS = {"generate", "embed", "features", "bench", "inspect"}
# Their options, other than these, are followed by a value.
SWITCHES = {"--json", "--no-metadata", "--plan", "--prepack", "--skip"}


def main() -> None:
    """Run the command line of this process, and exit with its code (see `intaglio.Error`)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup ignores it
        signal.signal(signal.SIGINT, end_at_once)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # for a path that its encoding lacks
    args = sys.argv[1:]
    if meant := misspelt(args):
        print(
            f'intaglio: there is no command "{args[0]}" (did you mean {meant}?):'
            " intaglio --help lists them",
            file=sys.stderr,
        )
        sys.exit(_core.UsageError.exit_code)
    if args and not args[0].startswith("-") and args[0] not in RUNNERS:
        for command in entry_points(group=GROUP, name=args[0]):
            sys.exit(run_python(command, args[1:]))
    try:
        args = with_bundle(args)
    except _core.Error as error:
        print(f"intaglio: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    # From here on only C++ runs, so Ctrl-C and a reader that goes away, as `head` does, have to act
    # as on the C++ executable.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    code = _core.run_command(with_library(args))
    if args and args[0] in {"-h", "--help"}:
        print(python_commands())
    sys.exit(code)


def misspelt(args: list[str]) -> str | None:
    """Return the subcommand that may be meant by the first argument, if that is none."""
    known = RUNNERS | READERS | {"cache"}
    if not args or args[0].startswith("-") or args[0] in known:
        return None
    known |= {command.name for command in entry_points(group=GROUP)}
    near = [] if args[0] in known else get_close_matches(args[0], sorted(known), 1)
    return near[0] if near else None


INTERRUPTED = "intaglio: interrupted"


def end_at_once(*_: object) -> NoReturn:
    """Exit at Ctrl-C while a command is imported, where code may catch any exception."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{INTERRUPTED}\n".encode())
    os._exit(_core.Interrupted.exit_code)


def interruptible(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with Ctrl-C raising KeyboardInterrupt in it, instead of `end_at_once`."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        before = signal.getsignal(signal.SIGINT)
        if before is not end_at_once:
            return function(*args, **options)
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return function(*args, **options)
        finally:
            signal.signal(signal.SIGINT, before)

    return run


def with_library(args: list[str]) -> list[str]:
    """Add --onnxruntime with the library of the Python package, where a command needs one."""
    if not args or args[0] not in RUNNERS or any(a.startswith("--onnxruntime") for a in args):
        return args
    library = onnxruntime_library()
    return [args[0], "--onnxruntime", str(library), *args[1:]] if library else args


def with_bundle(args: list[str]) -> list[str]:
    """Put the folder of a bundle in the place of its name on the Hub, and pull it if necessary."""
    place = bundle_argument(args)
    if place is None or Path(args[place]).exists():
        return args
    try:
        name = HubName.parse(args[place])
    except _core.UsageError:
        return args  # a path, about which the C++ command has more to say
    from intaglio.hub import pulling

    folder = pulling.pulled(name)
    if folder is None:
        try:
            folder = pulling.pull(name)
        except _core.Error as error:
            # The name may be a path with a mistake in it.
            raise type(error)(f"there is no folder {args[place]}, and {error}") from error
        print(f"intaglio: note: {name} was pulled from the Hub to {folder}", file=sys.stderr)
    return [*args[:place], str(folder), *args[place + 1 :]]


def bundle_argument(args: list[str]) -> int | None:
    """Return the index of the first argument that is neither an option nor its value."""
    if not args or args[0] not in READERS or {"-h", "--help"} & {*args}:
        return None
    is_value = False
    for i, arg in enumerate(args[1:], 1):
        if is_value:
            is_value = False
        elif not arg.startswith("-"):
            return i
        else:
            attached = "=" in arg or re.match(r"-\w.", arg)  # --steps=4, -oboot.png
            is_value = not attached and arg not in SWITCHES
    return None


def run_python(command: EntryPoint, args: list[str]) -> int:
    """Load a function with typer's annotations, run it on `args`, and return the exit code."""
    import typer

    # Without rich, whose help breaks the lines of paragraphs twice.
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    try:
        app.command(command.name)(interruptible(command.load()))
        return int(app(args, prog_name=f"intaglio {command.name}", standalone_mode=False) or 0)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in {"", "intaglio", command.module.split(".")[0]}:
            raise  # a bug, and not an extra that is not installed
        print(
            f"intaglio: {command.name} needs the Python package {missing}:"
            f' pip install "intaglio[{command.name}]"',
            file=sys.stderr,
        )
        return _core.UnavailableError.exit_code
    except typer.Abort:  # typer raises this for a KeyboardInterrupt that the command did not catch
        print(INTERRUPTED, file=sys.stderr)
        return _core.Interrupted.exit_code
    except Exception as error:
        # Usage errors have this method in every version of typer.
        if not hasattr(error, "format_message"):
            raise
        wrong = " ".join(error.format_message().split()).rstrip(".")
        # This prefix of pydantic's tells the user nothing.
        wrong = wrong.replace("Value error, ", "")
        print(f"intaglio: {wrong} (see intaglio {command.name} --help)", file=sys.stderr)
        return _core.UsageError.exit_code


def python_commands() -> str:
    """Return the section of the help that lists the subcommands in Python."""
    lines = (f"  {c.name:<27} {summary(c)}" for c in sorted(entry_points(group=GROUP)))
    return "\n".join(["", "Python subcommands:", *lines, ""])


def summary(command: EntryPoint) -> str:
    """Return the first line of the function's docstring, without importing its module."""
    spec = find_spec(command.module)
    if not spec or not spec.origin:
        return "not installed"
    for node in ast.parse(Path(spec.origin).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == command.attr:
            first = (ast.get_docstring(node) or "").partition("\n")[0].rstrip(".")
            return first[:1].lower() + first[1:]
    return ""


if __name__ == "__main__":
    main()

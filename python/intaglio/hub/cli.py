"""The commands `intaglio push` and `intaglio pull`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from intaglio import _core
from intaglio.hub import HubName
from intaglio.hub.pulling import pull as pull_bundle
from intaglio.hub.pushing import push as push_bundle

_Result = TypeVar("_Result")


def pull(
    name: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="Repository, or ORG/NAME@REVISION.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="OUT", help="Folder to write. Default: in the Hub's cache."
        ),
    ] = None,
) -> None:
    """Download a bundle from the Hugging Face Hub, and print its folder.

    The size and SHA-256 of each file are compared with the bundle's manifest. In this
    Python package, generate, embed, bench and inspect take ORG/NAME as a bundle too, and pull it at
    its first use; a folder of that name comes first. The C++ program alone needs a folder.

    Example: intaglio pull org/fashion -o fashion
    """
    typer.echo(_run(lambda: pull_bundle(HubName.parse(name), output)))


def push(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that `intaglio export` wrote.")
    ],
    name: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository on the Hub.")],
) -> None:
    """Upload a bundle to the Hugging Face Hub, with a model card.

    It needs a token that may write (`hf auth login`). A repository that does not exist is made, and
    is private until you publish it in its settings. The card has the licence, the precision, the
    parity error and the devices. TensorRT engines are left out, since they can hold programs.

    Example: intaglio push fashion org/fashion
    """
    url, made = _run(lambda: push_bundle(bundle, HubName.parse(name)))
    state = "private; publish it in its settings" if made else "the files there were replaced"
    typer.echo(f"{url} ({state})")


def _run(action: Callable[[], _Result]) -> _Result:
    """Return what `action` returns, or print its error in the form of the C++ command and exit."""
    try:
        return action()
    except _core.Error as error:
        typer.echo(f"intaglio: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(error.exit_code) from None

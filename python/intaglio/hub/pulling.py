"""Download a bundle, and check that it is the one that its manifest describes."""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache

from intaglio import _core
from intaglio.hub import CARD, MANIFEST, HubName
from intaglio.hub.problems import problem


def pull(name: HubName, output: Path | None = None) -> Path:
    """Download the bundle to `output`, or else to the Hub's cache, and return its folder.

    What is there already is not downloaded again. The size and the SHA-256 of each file are
    compared with the manifest; a file that differs is deleted. Without the network, a bundle that
    is whole in the cache is enough.

    Raises:
        UsageError: `output` exists.
        InputError: the repository is missing, gated or no bundle, or a file has other content.
        UnavailableError: the Hub cannot be reached.
    """
    if output is None:
        try:
            return _download(name, None)
        except _core.UnavailableError:
            if folder := pulled(name):
                return folder
            raise
    if output.exists():
        raise _core.UsageError(f"{output} exists already: choose another folder for -o")
    partial = output.with_name(output.name + ".partial")  # stays for the next try if this one fails
    _download(name, partial)
    shutil.rmtree(partial / ".cache")  # huggingface_hub's notes about the download
    partial.rename(output)
    return output


def pulled(name: HubName) -> Path | None:
    """Return the folder of the bundle if it is whole in the cache. The Hub is not asked."""
    manifest = try_to_load_from_cache(name.repo, MANIFEST, revision=name.revision)
    if not isinstance(manifest, str):
        return None
    folder = Path(manifest).parent
    whole = all((folder / file).is_file() for file in _listed(folder, name))
    return folder if whole else None


def _download(name: HubName, to: Path | None) -> Path:
    try:
        info = HfApi().model_info(name.repo, revision=name.revision)
        if MANIFEST not in {file.rfilename for file in info.siblings or ()}:
            raise _core.InputError(
                f"{name} is not a bundle (it has no {MANIFEST}): if it is a diffusers pipeline,"
                f" `intaglio export {name} -o FOLDER` makes a bundle of it"
            )
        manifest = hf_hub_download(name.repo, MANIFEST, revision=name.revision, local_dir=to)
        listed = _listed(Path(manifest).parent, name)
        # All in one call, so that the files are of one commit even if the owner pushes meanwhile.
        folder = Path(
            snapshot_download(
                name.repo,
                revision=name.revision,
                allow_patterns=[MANIFEST, CARD, *map(glob.escape, listed)],
                local_dir=to,
            )
        )
        listed = _listed(folder, name)
    except _core.Error:
        raise
    except Exception as error:  # from huggingface_hub, its HTTP client, or the disk
        raise problem(error, name) from error
    _check(folder, listed, name)
    return folder


def _listed(folder: Path, name: HubName) -> dict[str, Any]:
    """Return the files that the manifest lists, each with its bytes and sha256."""
    try:
        files = json.loads((folder / MANIFEST).read_text("utf-8-sig"))["files"]
        checked = {str(file): (int(info["bytes"]), info["sha256"]) for file, info in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _core.InputError(
            f"the {MANIFEST} of {name} is damaged: ask its owner to push the bundle again"
        ) from error
    for file in checked:
        # A path of Windows may have a drive, and backslashes between its parts.
        path = PureWindowsPath(file)
        if path.anchor or ".." in path.parts:
            raise _core.InputError(
                f"the {MANIFEST} of {name} lists {file}, which is outside the bundle: do not use it"
            )
        if path.parts[:1] == ("engines",):  # TensorRT's files can hold programs
            raise _core.InputError(
                f"the {MANIFEST} of {name} lists {file}, but engines can hold programs and do not"
                " belong on the Hub: do not use it"
            )
    return checked


def _check(folder: Path, listed: dict[str, Any], name: HubName) -> None:
    """Compare each file with the manifest. Delete those that differ, so that none is used."""
    missing = [file for file in listed if not (folder / file).is_file()]
    if missing:
        raise _core.InputError(
            f"{name} lacks the file {missing[0]}: ask its owner to push the bundle again"
        )
    wrong = [file for file, (size, sha) in listed.items() if not _same(folder / file, size, sha)]
    for file in wrong:
        (folder / file).resolve().unlink()  # in the cache this is what the link points to
        (folder / file).unlink(missing_ok=True)
    if wrong:
        raise _core.InputError(
            f"the file {wrong[0]} of {name} is not the one in its {MANIFEST} (the size or SHA-256"
            " differs), so it was deleted: pull again, or ask its owner to push the bundle again"
        )


def _same(path: Path, size: int, sha256: str) -> bool:
    if path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256

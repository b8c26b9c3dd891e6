"""Download from the Hugging Face Hub what an export needs of a model."""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    RepoFile,
    constants,
    get_cached_repo_tree,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils.tqdm import tqdm

from intaglio_export.errors import ExportError
from intaglio_export.sources import weights
from intaglio_export.sources.parts import check_unquantised, held_in
from intaglio_export.sources.pipeline_folder import (
    CARD,
    INDEX,
    SETTINGS,
    PipelineFolder,
    open_folder,
)
from intaglio_export.support.messages import out_of_memory, plain

Report = Callable[[str], None]
# A function that returns the parts of a pipeline whose weights are not needed.
Without = Callable[[PipelineFolder], frozenset[str]]
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?")

# huggingface_hub's name of the progress bar that counts the bytes of all files.
_WRITTEN = "huggingface_hub.snapshot_download"


def is_hub_name(text: str) -> bool:
    """Return whether `text` may be org/name or org/name@revision."""
    return _NAME.fullmatch(text) is not None and text[0] not in "./"


def fetch(
    name: str,
    dtype: torch.dtype,
    text_encoders: str = "all",
    without: Without = lambda folder: frozenset(),
    report: Report = lambda what: None,
) -> PipelineFolder:
    """Download those files of the pipeline org/name[@revision] that the export reads.

    These are the index, and for each exported part its configuration and one set of weights in the
    variant of `dtype`. The weights of the parts `without` are left out. Files in the cache are not
    downloaded again. If the Hub cannot be reached, the cache is enough, whichever program filled
    it. `report` is called with a text about the progress.

    Raises:
        ExportError: neither the Hub nor the cache has the model, or it cannot be exported.
    """
    match = _NAME.fullmatch(name)
    assert match is not None
    try:
        return _download(match, dtype, text_encoders, without, report)
    except ExportError:
        raise
    except Exception as error:  # from huggingface_hub, its HTTP client, or the disk
        if out_of_memory(error):
            raise
        if _is_unreachable(error) and (found := _cached(match, dtype, text_encoders, without)):
            return found
        raise ExportError(_sentence(error, name, match)) from error


def _download(
    match: re.Match[str], dtype: torch.dtype, text_encoders: str, without: Without, report: Report
) -> PipelineFolder:
    name = match[0]
    report(f"Looking for {name}")
    root = _snapshot(match, [INDEX, SETTINGS, CARD])
    if not (root / INDEX).is_file():
        raise ExportError(
            f"The model {name} on the Hub is not a diffusers pipeline: it has no {INDEX}."
            " Give one in diffusers' format (such names often end in -diffusers)."
        )
    folder = open_folder(root, text_encoders)
    tree = get_cached_repo_tree(match["repo"], revision=root.name)
    given = without(folder)
    files = _needed(folder, [file.path for file in tree], dtype, given)
    _snapshot(match, [file for file in files if file.endswith("/config.json")])
    for part_name, part in folder.parts.items():
        if part.is_network and part_name not in given:
            check_unquantised(part)  # before its weights are downloaded
    _snapshot(match, files, _progress(name, tree, files, report))
    return folder


def _cached(
    match: re.Match[str], dtype: torch.dtype, text_encoders: str, without: Without
) -> PipelineFolder | None:
    """Return the pipeline in the cache if all exported parts are there, or None.

    huggingface_hub cannot tell this of a cache that an older version of it filled, and demands
    files that other programs did not ask it for.
    """
    index = try_to_load_from_cache(match["repo"], INDEX, revision=match["revision"])
    if not isinstance(index, str):
        return None
    folder = open_folder(Path(index).parent, text_encoders)
    absent = without(folder)
    for name, part in folder.parts.items():
        if name in folder.optional and not part.path.is_dir():
            continue
        files = [file.name for file in part.path.glob("*") if file.is_file()]
        if part.is_network and name not in absent:
            files, _ = weights.choose(files, held_in(name, dtype))
            try:
                weights.check_whole(part.path, files)
            except ExportError:
                return None
        if not files:
            return None
    return folder


def _snapshot(match: re.Match[str], files: list[str], bar: type[Any] | None = None) -> Path:
    return Path(
        snapshot_download(
            match["repo"],
            revision=match["revision"],
            allow_patterns=files,
            tqdm_class=bar or _Silent,
        )
    )


def _needed(
    folder: PipelineFolder, files: list[str], dtype: torch.dtype, without: frozenset[str]
) -> list[str]:
    """Choose the files of the exported parts; copies in the root of the repository are not read."""
    needed = []
    for name, part in folder.parts.items():
        beside = [f.removeprefix(f"{name}/") for f in files if f.startswith(f"{name}/")]
        beside = [f for f in beside if "/" not in f]
        chosen = [f for f in beside if not weights.is_weights(f) and ".index." not in f]
        if part.is_network and name not in without:
            read, _ = weights.choose(beside, held_in(name, dtype))
            chosen += read + [
                f for f in beside if any(f in weights.indices_of(r) for r in read[:1])
            ]
        needed += [f"{name}/{f}" for f in chosen]
    return [INDEX, *needed]


class _Silent(tqdm):
    """A progress bar that prints nothing, because the command shows its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"file": io.StringIO()})  # type: ignore[no-untyped-call]


def _progress(name: str, tree: list[RepoFile], files: list[str], report: Report) -> type[_Silent]:
    total = sum(file.size or 0 for file in tree if file.path in set(files))

    class Reporting(_Silent):
        """Counts bytes itself, because a bar that huggingface_hub has disabled does not."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._written = 0.0 if kwargs.get("name") == _WRITTEN else None
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            if self._written is not None:
                self._written += n or 0
                report(f"Downloading {name} ({self._written / 1e9:.1f} of {total / 1e9:.1f} GB)")
            shown: bool | None = super().update(n)
            return shown

    return Reporting


def _sentence(error: Exception, name: str, match: re.Match[str]) -> str:
    """Say what is wrong and what to do, for an error of huggingface_hub or of its libraries."""
    repo, page = match["repo"], f"{constants.ENDPOINT}/{match['repo']}"
    if constants.HF_HUB_OFFLINE and _is_unreachable(error):
        return (
            f"The model {name} is not complete in the cache {constants.HF_HUB_CACHE}, and"
            " HF_HUB_OFFLINE forbids the download; unset it, or give a folder."
        )
    for cause in (error, error.__cause__):
        if isinstance(cause, hub_errors.GatedRepoError):  # a subclass of RepositoryNotFoundError
            return (
                f"The model {repo} is gated: accept its licence on {page}, and log in with"
                " `hf auth login`."
            )
        if isinstance(cause, hub_errors.RevisionNotFoundError):
            return (
                f"The model {repo} has no revision {match['revision']}; {page} lists its revisions."
            )
        if isinstance(cause, hub_errors.RepositoryNotFoundError):
            return (
                f"There is no folder {name} here and no model {repo} on the Hub; check the name,"
                " or log in with `hf auth login` if the model is private."
            )
        if isinstance(cause, hub_errors.HfHubHTTPError):
            return _answer(cause, name)
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return (
                f"The disk of the Hub's cache {constants.HF_HUB_CACHE} is full; free some space, or"
                " set HF_HOME to a folder on another disk."
            )
    if isinstance(error, hub_errors.HFValidationError):
        return f"{name} is neither a folder nor a valid Hub name (org/name)."
    if isinstance(error, OSError) and error.filename is not None:
        return f"Cannot write the Hub's cache: {error.filename}: {error.strerror or plain(error)}."
    if _is_unreachable(error):
        return (
            f"The Hub ({constants.ENDPOINT}) cannot be reached to download {name}, and there is no"
            " such folder; check the network, or give a folder."
        )
    return f"The model {name} cannot be downloaded: {plain(error)}; try again."


def _answer(error: hub_errors.HfHubHTTPError, name: str) -> str:
    """Quote what the Hub answered, and say what helps with an answer of that status."""
    code = error.response.status_code
    advice = {
        401: "log in again with `hf auth login`, or correct HF_TOKEN if it is set",
        403: f"change the token on {constants.ENDPOINT}/settings/tokens, or log in with another one"
        " (`hf auth login`)",
        429: "wait some minutes; the Hub allows more requests to users who log in"
        " (`hf auth login`)",
    }.get(code, "try again later" if code >= 500 else "check the name and the network's proxy")
    said = " ".join((error.server_message or "").split()).rstrip(".")
    quoted = f" ({said})" if said else ""
    return f"The Hub answered with the error {code}{quoted} for {name}; {advice}."


def _is_unreachable(error: Exception) -> bool:
    """Return whether the error says that the Hub did not answer or send the files."""
    kinds = (
        hub_errors.LocalEntryNotFoundError,
        hub_errors.OfflineModeIsEnabled,
        hub_errors.CachedRepoTreeNotFoundError,
    )
    return isinstance(error, kinds) or _is_connection(error)


def _is_connection(error: Exception) -> bool:
    """Return whether the error is from the HTTP client, whose name differs between versions."""
    return type(error).__module__.split(".")[0].startswith(("httpx", "httpcore", "requests"))

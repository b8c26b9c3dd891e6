"""Upload a bundle in one commit, with a model card."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from intaglio import _core
from intaglio.hub import CARD, MANIFEST, HubName
from intaglio.hub.card import model_card
from intaglio.hub.problems import problem

# Files of a repository that do not make it somebody else's.
_NEUTRAL = {CARD, ".gitattributes", "LICENSE", "LICENSE.md"}


def push(bundle: Path, name: HubName) -> tuple[str, bool]:
    """Upload the files that the manifest lists, and the model card, in place of an older bundle.

    Every file is compared with the manifest first. A repository that does not exist is made, and
    is private. All files appear in one commit, or none of them.

    Returns:
        The URL of the repository, and whether it was made.

    Raises:
        UsageError: `name` has a revision.
        InputError: the bundle is damaged, or the repository has something else or cannot be
            written.
        UnavailableError: the Hub cannot be reached.
    """
    if name.revision:
        raise _core.UsageError(
            f"a bundle is pushed to a repository, not to a revision: {name.repo}"
        )
    _core.Bundle.open(bundle)
    manifest = json.loads((bundle / MANIFEST).read_text("utf-8-sig"))
    files = [MANIFEST, *manifest["files"]]
    api = HfApi()
    try:
        there = _files(api, name)
        made = there is None
        old = set(there or ()) - _NEUTRAL
        if old and MANIFEST not in old:
            raise _core.InputError(
                f"{name} has other files than a bundle's ({min(old)}): push to a repository of"
                " its own"
            )
        url = api.create_repo(name.repo, private=True, exist_ok=True)
        card = model_card(manifest, name).encode()
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(CARD, card),
            *(CommitOperationAdd(file, bundle / file) for file in files),
            *(CommitOperationDelete(file) for file in sorted(old - set(files))),
        ]
        api.create_commit(name.repo, operations, commit_message=f"Bundle {manifest['name']}")
    except _core.Error:
        raise
    except Exception as error:  # from huggingface_hub, its HTTP client, or the disk
        raise problem(error, name) from error
    return str(url), made


def _files(api: HfApi, name: HubName) -> list[str] | None:
    """Return the files of the repository, or None if it does not exist."""
    try:
        return list(api.list_repo_files(name.repo))
    except RepositoryNotFoundError:
        return None

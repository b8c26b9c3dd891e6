"""Turn errors of huggingface_hub and its HTTP client into Intaglio's, with a way out."""

from __future__ import annotations

import errno

from huggingface_hub import constants, errors

from intaglio import _core
from intaglio.hub import HubName

_UNREACHABLE = (
    errors.LocalEntryNotFoundError,
    errors.OfflineModeIsEnabled,
    errors.CachedRepoTreeNotFoundError,
)
_LOGIN = "log in with `hf auth login`"


def problem(error: Exception, name: HubName) -> _core.Error:
    """Return the error to raise instead of `error`."""
    page = f"{constants.ENDPOINT}/{name.repo}"
    for cause in (error, error.__cause__):
        if isinstance(cause, errors.GatedRepoError):  # a subclass of RepositoryNotFoundError
            return _core.InputError(
                f"{name.repo} is gated: accept its licence on {page}, and {_LOGIN}"
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return _core.InputError(
                f"{name.repo} has no revision {name.revision}: {page} lists its revisions"
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return _core.InputError(
                f"there is no repository {name.repo} on the Hub that you may use: check the name,"
                f" or {_LOGIN}"
            )
        if isinstance(cause, errors.HfHubHTTPError):
            return _answer(cause, name)
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return _core.InputError(
                f"the disk is full: free some space, or set HF_HOME, whose cache is"
                f" {constants.HF_HUB_CACHE}, to a folder on another disk"
            )
    if isinstance(error, errors.HFValidationError):
        return _core.UsageError(f"{name} is not a valid name on the Hub: write it as org/name")
    if isinstance(error, OSError) and error.filename is not None:
        return _core.InputError(f"cannot write {error.filename}: {error.strerror}")
    if constants.HF_HUB_OFFLINE and isinstance(error, _UNREACHABLE):
        return _core.UnavailableError(
            f"HF_HUB_OFFLINE forbids to reach the Hub for {name}: unset it, or give a folder"
        )
    if isinstance(error, _UNREACHABLE) or _from_http_client(error):
        return _core.UnavailableError(
            f"the Hub ({constants.ENDPOINT}) cannot be reached for {name}: check the network, or"
            " give a folder"
        )
    said = " ".join(str(error).split()).rstrip(".")
    return _core.InputError(f"{name} cannot be transferred ({said}): try again")


def _answer(error: errors.HfHubHTTPError, name: HubName) -> _core.Error:
    """Quote what the Hub answered, and say what helps with an answer of that status."""
    code = error.response.status_code
    advice = {
        401: _LOGIN + ", or correct HF_TOKEN if it is set",
        403: f"change the token on {constants.ENDPOINT}/settings/tokens, since this one does not"
        " have the permission",
        429: f"wait some minutes, or {_LOGIN}",
    }.get(code, "try again later" if code >= 500 else "check the name and the network's proxy")
    said = " ".join((error.server_message or "").split()).rstrip(".")
    quoted = f" ({said})" if said else ""
    return _core.InputError(f"the Hub answered with the error {code}{quoted} for {name}: {advice}")


def _from_http_client(error: Exception) -> bool:
    """Return whether the error is from the HTTP client, whose name differs between versions."""
    return type(error).__module__.split(".")[0].startswith(("httpx", "httpcore", "requests"))

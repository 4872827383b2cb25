"""What the hub and its clients refuse, said in one line with the way out."""

from types import TracebackType
from typing import Any

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lightning_app.errors import UserError
from lightning_app.hub.client import PASSING, GaveUpError, hub_host, why_away


class UnreachableError(UserError):
    """A remote source could not be reached; what is cached may still serve."""


class hub_errors:  # noqa: N801 - used as a statement
    """Turns what the hub's clients raise into one line that says what to do.

    Args:
        repository: A data set, OWNER/NAME.
        advice: What to do where it cannot be reached.
        alternatives: What to use instead where it may not be read.
    """

    def __init__(
        self, repository: str, advice: str, alternatives: str = "--data.source FOLDER or --data.files"
    ) -> None:
        self.repository, self.advice, self.alternatives = repository, advice, alternatives

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return
        refusal = refused(error, self.repository, "data set", "--data.revision", self.alternatives)
        if refusal is None and is_network_error(error):
            refusal = unreachable(self.repository, error, self.advice)
        if refusal is not None:
            raise refusal from error


def refused(error: Exception, name: str, kind: str, revision_key: str, alternatives: str) -> UserError | None:
    """Returns the error for what the hub answered about ``name`` (a "data set" or "model"); None for no answer."""
    said = str(error)
    if own := _find(error, UserError):
        return own
    if _find(error, GatedRepoError) or (_is_of(error, "DatasetNotFoundError") and "gated" in said):
        return gated(name, alternatives, kind)
    if _find(error, RevisionNotFoundError) or (_is_of(error, "DatasetNotFoundError") and said.startswith("Revision")):
        return UserError(f"{name} has no such revision; check {revision_key}")
    if isinstance(error, HFValidationError):
        return UserError(f"'{name}' cannot be the name of a {kind}; expected OWNER/NAME or a folder")
    answer, status = _find(error, HfHubHTTPError), status_of(error)
    is_missing = _is_of(error, "DatasetNotFoundError") and not is_network_error(error)
    if is_missing or _find(error, RepositoryNotFoundError):
        access = "your token may not read it" if get_token() else "it is private: run `hf auth login` or set HF_TOKEN"
        return UserError(f"there is no {kind} {name} on the hub, or {access}; check the name, or use {alternatives}")
    if status == 401:
        return UserError("the hub refuses your token (401); run `hf auth login` again, or correct or unset HF_TOKEN")
    if status == 403:
        return UserError(f"your token may not read {name} (403); allow it at https://huggingface.co/settings/tokens")
    missing = _find(error, EntryNotFoundError)
    if missing is not None and not isinstance(missing, LocalEntryNotFoundError):
        return UserError(f"the {kind} {name} has no such file on the hub ({_short(missing)}); check the name")
    if status and status not in PASSING:
        return UserError(f"the hub answers {status} about {name}: {_short(answer)}")
    return None


def unreachable(name: str, error: BaseException, advice: str) -> UnreachableError:
    """Returns the error for a hub that does not answer, or only with errors of its own."""
    answer, reason = _find(error, HfHubHTTPError), _why_given_up(error)
    if not reason and answer is not None:
        reason = f"answers {answer.response.status_code}"
    if not reason and constants.HF_HUB_OFFLINE:
        return UnreachableError(f"cannot reach {name}, because HF_HUB_OFFLINE is set; {advice}")
    where = name if "://" in name else f"{name} at {constants.ENDPOINT}"
    return UnreachableError(f"cannot reach {where}{f': it {reason}' if reason else ''}; {advice}")


def status_of(error: BaseException) -> int:
    """Returns the status that the hub answered with, where ``error`` comes of one; else 0."""
    answer = _find(error, HfHubHTTPError)
    return answer.response.status_code if answer is not None else 0


def is_network_error(error: BaseException) -> bool:
    """Tells whether ``error`` is a failed connection or a server's own failure, also where a client wrapped it."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    if isinstance(error, (ConnectionError, TimeoutError, OfflineModeIsEnabled)):
        return True
    if _is_of(error, "TransportError", "RequestException", "ClientError"):
        return True  # httpx, requests and aiohttp, whichever the hub's clients use
    inner = error.__cause__ or error.__context__
    return inner is not None and is_network_error(inner)


def has_given_up(error: BaseException) -> bool:
    """Tells whether ``error`` comes from a request that was repeated in vain already."""
    return bool(_why_given_up(error))


def _why_given_up(error: BaseException) -> str:
    # datasets raises some errors anew without what caused them: the client knows.
    gave_up = _find(error, GaveUpError)
    return str(gave_up) if gave_up is not None else why_away(hub_host())


def _find(error: BaseException | None, kind: type[BaseException]) -> Any:
    """Returns ``error`` or what it was raised from, whichever is of a kind first, or None."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _is_of(error: BaseException, *names: str) -> bool:
    """Tells whether an error is of a class with one of these names, in a library that need not be imported to ask."""
    return not {base.__name__ for base in type(error).__mro__}.isdisjoint(names)


def _short(error: object) -> str:
    return " ".join(str(error).split())[:200]


def gated(
    repository: str, alternatives: str = "--data.source FOLDER or --data.files", kind: str = "data set"
) -> UserError:
    """Returns the error for a gated repository without token or accepted terms."""
    page = f"https://huggingface.co/{'datasets/' if kind == 'data set' else ''}{repository}"
    return UserError(
        f"{repository} is gated: open {page}, accept its terms, then run `hf auth login` or set HF_TOKEN; "
        f"or use {'another' if kind == 'model' else 'other data'}: {alternatives}"
    )


def unloadable(what: str, name: str, error: Exception) -> UserError:
    """Returns one line for what transformers says at length when it cannot load something."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in reason or "contains custom code" in reason:
        return UserError(
            f"{name} comes with code of its own, which is never run; give a --model.base that transformers knows itself"
        )
    if "gated" in reason or "restricted" in reason:
        return gated(name, "--model.base NAME or FOLDER", "model")
    refusal = refused(error, name, "model", "--model.revision", "--model.base FOLDER")
    if refusal is not None:
        return refusal
    if is_network_error(error) or "couldn't connect" in reason.lower() or "offline" in reason.lower():
        why = f": it {_why_given_up(error)}" if has_given_up(error) else ""
        return UserError(
            f"cannot reach the hub for the {what} of {name} and it is not cached{why}; run the same command again with "
            "a network, or give a local folder"
        )
    return UserError(f"cannot load the {what} of {name}: {reason[:200]}; check --model.base")

"""What the Hugging Face hub and its clients refuse, said in one line with the way out."""

from typing import Any

from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lightning_app.errors import UserError


class UnreachableError(UserError):
    """A remote source could not be reached; what is cached may still serve."""


class hub_errors:  # noqa: N801 - used as a statement
    """Turns what the hub's clients raise into one line that says what to do."""

    def __init__(self, repository: str, advice: str) -> None:
        self.repository, self.advice = repository, advice

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None or isinstance(error, (UserError, GeneratorExit)):
            return
        if is_caused_by(error, GatedRepoError):
            raise gated(self.repository) from error
        if is_caused_by(error, RevisionNotFoundError):
            raise UserError(f"{self.repository} has no such revision; check --data.revision") from error
        if is_caused_by(error, RepositoryNotFoundError) or (
            isinstance(error, DatasetNotFoundError) and not is_caused_by(error, ConnectionError)
        ):
            raise UserError(f"there is no data set {self.repository} on the hub; {self.advice}") from error
        if is_network_error(error):
            raise UnreachableError(f"cannot reach {self.repository} at {constants.ENDPOINT}; {self.advice}") from error


def is_network_error(error: BaseException) -> bool:
    """Tells whether ``error`` is a failed connection, also where a client wrapped it."""
    if isinstance(error, (ConnectionError, TimeoutError, OfflineModeIsEnabled, HfHubHTTPError)):
        return True
    if any(base.__name__ in ("TransportError", "RequestException", "ClientError") for base in type(error).__mro__):
        return True  # httpx, requests and aiohttp, whichever the hub's clients use
    inner = error.__cause__ or error.__context__
    return inner is not None and is_network_error(inner)


def is_caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Tells whether ``error`` or what it was raised from is of a kind."""
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False


def gated(repository: str, alternatives: str = "--data.source FOLDER or --data.files") -> UserError:
    """Returns the error for a gated data set without token or accepted terms."""
    page = f"https://huggingface.co/datasets/{repository}"
    return UserError(
        f"{repository} is gated: open {page}, accept its terms, then run `hf auth login` or set HF_TOKEN; "
        f"or use other data: {alternatives}"
    )


def unloadable(what: str, name: str, error: BaseException) -> UserError:
    """Returns one line for what transformers says at length when it cannot load something."""
    reason = " ".join(str(error).split())
    if "gated" in reason or "restricted" in reason:
        return UserError(
            f"{name} is gated: open https://huggingface.co/{name}, accept its terms, then run `hf auth login` or set "
            "HF_TOKEN; or name another --model.base"
        )
    if is_network_error(error) or "couldn't connect" in reason.lower() or "offline" in reason.lower():
        return UserError(f"cannot reach the hub for the {what} of {name} and it is not cached; or give a local folder")
    return UserError(f"cannot load the {what} of {name}: {reason[:200]}; check --model.base")

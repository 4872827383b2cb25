"""What users publish on the hub: results that go up in one commit, and files of others, ``hub:OWNER/NAME``."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from lightning_app.errors import UserError
from lightning_app.hub.refusals import is_network_error, refused, status_of, unreachable

_PREFIX = "hub:"


def is_published(name: str) -> bool:
    """Tells whether a name is one of the hub, ``hub:OWNER/NAME``, and no path."""
    return name.startswith(_PREFIX)


def local_file(name: str, usual: str, key: str) -> Path:
    """Returns the file that a key names: a path as it is, ``hub:OWNER/NAME`` as `fetch_published` does."""
    return fetch_published(name, usual, key) if is_published(name) else Path(name)


def fetch_published(name: str, usual: str, key: str) -> Path:
    """Returns a file that somebody has published; downloaded where it is not cached.

    Args:
        name: ``hub:OWNER/NAME``, ``hub:OWNER/NAME/FILE``, either with ``@REVISION``.
        usual: The file that is meant where the name has none.
        key: What named it, for errors.

    Raises:
        UserError: There is no such file, or it may not be read, or cannot be reached and is not cached.
    """
    place, _, revision = name.removeprefix(_PREFIX).partition("@")
    owner, _, rest = place.partition("/")
    repository, _, file = rest.partition("/")
    require_repository(f"{owner}/{repository}", f"{key} is {name}", f"{_PREFIX}OWNER/NAME, with @REVISION if wanted")
    with _one_line(f"{owner}/{repository}", key, "run the same command again with a network, or give a file"):
        return Path(hf_hub_download(f"{owner}/{repository}", file or usual, revision=revision or None))


def require_repository(repository: str, said: str, expected: str) -> None:
    """Raises `UserError` where the hub allows no such name, OWNER/NAME."""
    try:
        validate_repo_id(repository)
        is_allowed = repository.count("/") == 1
    except HFValidationError:
        is_allowed = False
    if not is_allowed:
        raise UserError(
            f"{said}; expected {expected}, of letters, digits, '-', '_' and '.', not at the ends and no two in a row, "
            "96 characters at most"
        )


def require_may_publish(repository: str) -> None:
    """Raises `UserError` where a repository cannot be written to, as far as can be known before it is."""
    require_repository(repository, f"--push_to is {repository}", "OWNER/NAME")
    if not get_token():
        raise UserError(
            f"nobody is logged in, so {repository} cannot be written: run `hf auth login`, or set HF_TOKEN, with a "
            "token that may write"
        )
    with _one_line(repository, "--push_to", "run the same command again with a network, or leave --push_to out"):
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError
        HfApi().whoami()


def published_card(base: str) -> dict[str, object]:
    """Returns what the card of a model on the hub says at its head; nothing where it has none."""
    with _one_line(base, "--model.base", "run the same command again with a network: nothing was published"):
        card = HfApi().model_info(base).card_data
        return card.to_dict() if card is not None else {}


def publish(repository: str, files: Mapping[str, Path | bytes], summary: str, is_private: bool) -> str:
    """Uploads files in one commit, all or none, and returns the address; the repository is made where there is none.

    Args:
        repository: OWNER/NAME.
        files: By their path in it.
        summary: Of the commit.
        is_private: Whether a new repository is.

    Raises:
        UserError: The hub refuses, or cannot be reached.
    """
    additions = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    with _one_line(repository, "--push_to", "run the same command again: nothing was published"):
        address = HfApi().create_repo(repository, private=is_private, exist_ok=True)
        HfApi().create_commit(repository, additions, commit_message=summary)
        return str(address)


@contextlib.contextmanager
def _one_line(repository: str, key: str, advice: str) -> Iterator[None]:
    """Turns what the hub's client raises in the block into one line."""
    try:
        yield
    except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        status = status_of(error)
        if key == "--push_to" and status in (401, 403):
            raise UserError(
                f"the hub does not let your token write to {repository} ({status}): run `hf auth login` with a token "
                "that may write, and give an OWNER that is you or an organisation of yours"
            ) from error
        if (said := refused(error, repository, "model", f"the revision in {key}", f"a file with {key}")) is not None:
            raise said from error
        if is_network_error(error):
            raise unreachable(repository, error, advice) from error
        raise UserError(
            f"the hub and {repository}: {' '.join(str(error).split())[:200] or type(error).__name__}; {advice}"
        ) from error

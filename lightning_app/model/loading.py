"""A base's files on their way from the hub and from the disk: how large they are, and how far they have come."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import DryRunError, HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from safetensors import safe_open
from transformers.utils import logging as transformers_logging

from lightning_app.errors import UserError
from lightning_app.progress import ByteProgress, TokenProgress, bytes_of, watched
from lightning_app.run import is_first_process

Item = TypeVar("Item")


class _WeightProgress(TokenProgress):
    unit = "weight"
    counted = " weights"
    per_second = " weights/s"


def base_size(name: str, revision: str | None) -> tuple[int | None, int | None]:
    """Returns the bytes of a base's files and how many of them are still to be downloaded; None where unknown."""
    if Path(name).is_dir():
        return sum(path.stat().st_size for path in Path(name).glob("*.safetensors")), 0
    try:
        files = snapshot_download(
            name, revision=revision, dry_run=True, allow_patterns=["*.safetensors", "*.json", "tokenizer*"],
            ignore_patterns=["consolidated*", "*/*"],
        )  # fmt: skip
    except (DryRunError, HfHubHTTPError, OSError):
        return None, None
    return sum(f.file_size or 0 for f in files), sum(f.file_size or 0 for f in files if f.will_download)


def require_floats(name: str, revision: str | None) -> None:
    """Raises `UserError` where weights that are here are whole or complex numbers, which transformers would cut to fit.

    Quantised ones are, and come with a configuration that says so.
    """
    cached = None if Path(name).is_dir() else try_to_load_from_cache(name, "config.json", revision=revision)
    folder = Path(cached).parent if isinstance(cached, str) else Path(name)
    config = folder / "config.json"
    if not config.is_file() or b'"quantization_config"' in config.read_bytes():
        return
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - no mapping
        for key, kind in kinds.items():
            if key.endswith(".weight") and not kind.startswith(("F", "BF")):
                raise UserError(
                    f"{path} holds {key} as {kind}; expected floating-point numbers, or a quantization_config"
                )


@contextlib.contextmanager
def shown_loading(name: str, revision: str | None) -> Iterator[None]:
    """Shows, while transformers loads a base in the block, its download where it is not here yet, then its reading."""
    is_shown = is_first_process()
    with contextlib.ExitStack() as download:
        if missing := _missing_bytes(name, revision) if is_shown else 0:
            before = bytes_of(_blobs(name))
            progress = ByteProgress(f"downloading {name}", missing, is_brief=True)
            download.enter_context(watched(progress, lambda: bytes_of(_blobs(name)) - before))

        def read(make_bar: Any, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
            download.close()
            return _counted(name, given[0], is_shown) if given else make_bar(*given, **options)

        # transformers says by its bars how far it is; earlier versions let nobody ask.
        set_hook = getattr(transformers_logging, "set_tqdm_hook", lambda hook: None)
        previous = set_hook(read)
        try:
            yield
        finally:
            set_hook(previous)


def _counted(name: str, weights: Iterable[Item], is_shown: bool) -> Iterator[Item]:
    every = list(weights)
    with _WeightProgress(f"reading {name}", len(every), is_shown=is_shown, is_brief=True) as progress:
        for weight in every:
            yield weight
            progress.advance(1)


def _missing_bytes(name: str, revision: str | None) -> int:
    """Returns the bytes to download; asks the hub only where some of the weights are not here."""
    if Path(name).is_dir() or constants.HF_HUB_OFFLINE:
        return 0
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    files = list(Path(config).parent.iterdir()) if isinstance(config, str) else []
    if any(file.suffix in (".safetensors", ".bin") for file in files) and not list(_blobs(name).glob("*.incomplete")):
        return 0
    return base_size(name, revision)[1] or 0


def _blobs(name: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "blobs"

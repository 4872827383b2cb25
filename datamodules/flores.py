"""FLORES as validation text: parallel sentences in over 200 languages, never trained on.

Read from FLORES+ on the hub (gated), from the public FLORES-200 tarball, or from a local folder of either layout.
"""

import contextlib
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.joining import join_sentences
from datamodules.text_files import plain_line_ends
from datamodules.tokenizers import start_token
from lightning_app.errors import UserError
from lightning_app.files import one_line, replacing
from lightning_app.hub import download, hub_errors, require_there
from lightning_app.languages import Language
from lightning_app.progress import held
from lightning_app.run import is_first_process

FLORES_PLUS = "openlanguagedata/flores_plus"
TARBALL = "https://dl.fbaipublicfiles.com/nllb/flores200_dataset.tar.gz"

Split = Literal["dev", "devtest"]
Overlap = Literal["drop", "keep"]

_BAD_ARCHIVE = (tarfile.TarError, EOFError, OSError, zlib.error)
_SPLITS: tuple[Split, ...] = ("dev", "devtest")
_TARBALL_ADVICE = "run the same command again with a network, or give --data.flores FOLDER"
_ALTERNATIVES = "--data.flores tarball (FLORES-200, public) or --data.flores FOLDER"


@dataclass(frozen=True)
class FloresBlock:
    """Sentences joined to one sequence.

    Attributes:
        input_ids: A start token and the text's tokens, int64 (T,), so that every token of the text is predicted.
        text_bytes: UTF-8 bytes of the text, for bits per byte.
    """

    input_ids: Tensor
    text_bytes: int


def read_flores(source: str, language: Language, split: Split, cache_dir: Path, overlap: Overlap = "drop") -> list[str]:
    """Returns a language's sentences.

    Args:
        source: ``openlanguagedata/flores_plus``, ``tarball``, the address or path of a .tar.gz, or a folder.
        language: Whose sentences.
        split: dev to validate and devtest to test.
        cache_dir: Where the tarball is kept.
        overlap: Whether dev loses or keeps the sentences that devtest holds, too.

    Raises:
        UserError: The source lacks the language, is gated, or cannot be reached.
    """
    sentences = _read_split(source, language, split, cache_dir)
    if split == "dev" and overlap == "drop":
        devtest = set(_read_split(source, language, "devtest", cache_dir))
        sentences = [sentence for sentence in sentences if sentence not in devtest]
    return sentences


def read_parallel(source: str, languages: Sequence[Language], split: Split, cache_dir: Path) -> list[tuple[str, ...]]:
    """Returns the sentences of several languages side by side; of dev, without those that devtest holds in any of them.

    Raises:
        UserError: As `read_flores`, or the languages have different numbers of sentences.
    """
    columns = [_read_split(source, language, split, cache_dir) for language in languages]
    if len({len(column) for column in columns}) > 1:
        counts = ", ".join(f"{len(column)} of {each}" for column, each in zip(columns, languages, strict=True))
        raise UserError(
            f"FLORES ({source}) is not parallel: {split} has {counts} sentences; give a whole --data.flores"
        )
    rows = list(zip(*columns, strict=True))
    if split == "devtest":
        return rows
    held_out = [set(_read_split(source, language, "devtest", cache_dir)) for language in languages]
    return [row for row in rows if not any(text in held for text, held in zip(row, held_out, strict=True))]


def is_at_hand(source: str, language: Language, cache_dir: Path) -> bool:
    """Tells whether a language's sentences can be read without the network; raises `UserError` where nowhere."""
    if source == "tarball" or source.endswith((".tar.gz", ".tgz")):
        url = TARBALL if source == "tarball" else source
        return (cache_dir / "flores" / url.rsplit("/", 1)[-1]).exists() or Path(url).expanduser().is_file()
    if Path(source).expanduser().is_dir():
        return True
    _require_repository(source)
    files = [f"{split}/{language.code('flores_plus')}.parquet" for split in _SPLITS]
    return all(isinstance(try_to_load_from_cache(source, file, repo_type="dataset"), str) for file in files)


def look_at(source: str, language: Language, cache_dir: Path) -> None:
    """Returns where a language's sentences can be had; of a hub and the web it asks, and downloads nothing.

    Raises:
        UserError: The source lacks the language, is gated, or cannot be reached.
    """
    if is_at_hand(source, language, cache_dir):
        for split in _SPLITS:
            _read_split(source, language, split, cache_dir)
    elif source == "tarball" or source.endswith((".tar.gz", ".tgz")):
        language.code("flores_200")
        url = TARBALL if source == "tarball" else source
        if "://" in url:
            require_there(url, _TARBALL_ADVICE)
        else:
            _tarball(url, cache_dir)
    else:
        _require_repository(source)
        for split in _SPLITS:
            with _asked_for(source, language) as file:
                get_hf_file_metadata(hf_hub_url(source, f"{split}/{file}", repo_type="dataset"))


def _read_split(source: str, language: Language, split: Split, cache_dir: Path) -> list[str]:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _read_folder(folder, language, split)
    if source == "tarball" or source.endswith((".tar.gz", ".tgz")):
        return _read_tarball(_tarball(source, cache_dir), language, split)
    _require_repository(source)
    with _asked_for(source, language) as file:
        path = hf_hub_download(source, f"{split}/{file}", repo_type="dataset")
    return _parquet_sentences(Path(path))


def _require_repository(source: str) -> None:
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"--data.flores {source} is neither a folder here nor a data set OWNER/NAME nor a .tar.gz")


@contextlib.contextmanager
def _asked_for(repository: str, language: Language) -> Iterator[str]:
    """Yields what a language's file is called in every split, and says in one line what the hub answers about it."""
    code = language.code("flores_plus")
    advice = f"run the same command again with a network, or give {_ALTERNATIVES}"
    with hub_errors(repository, advice, _ALTERNATIVES):
        try:
            yield f"{code}.parquet"
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            raise _lacks(repository, language, code) from error


def _read_folder(folder: Path, language: Language, split: Split) -> list[str]:
    codes = [code for code in (language.flores_plus, language.flores_200) if code]
    roots = [folder, folder / "openlanguagedata" / "flores_plus", folder / "flores200_dataset"]
    for root in roots:
        for code in codes:
            if (parquet := root / split / f"{code}.parquet").is_file():
                return _parquet_sentences(parquet)
            if (plain := root / split / f"{code}.{split}").is_file():
                return _plain_sentences(plain.read_bytes(), plain)
    raise _lacks(str(folder), language, " or ".join(codes))


def _read_tarball(path: Path, language: Language, split: Split) -> list[str]:
    code = language.code("flores_200")
    try:
        with tarfile.open(path) as archive:
            member = next((m for m in archive if m.name.endswith(f"/{split}/{code}.{split}")), None)
            content = archive.extractfile(member) if member is not None else None
            if content is None:
                raise _lacks(str(path), language, code)
            return _plain_sentences(content.read(), path)
    except _BAD_ARCHIVE as error:
        raise UserError(
            f"{path} is not a readable FLORES-200 tarball ({one_line(error)}); delete it and run again"
        ) from error


def _tarball(source: str, cache_dir: Path) -> Path:
    url = TARBALL if source == "tarball" else source
    if "://" not in url:
        path = Path(url).expanduser()
        if not path.is_file():
            raise UserError(f"there is no FLORES tarball at {path}; check --data.flores")
        return path
    path = cache_dir / "flores" / url.rsplit("/", 1)[-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(FileLock(path.with_suffix(".lock")), f"downloads {path.name}", is_first_process()):
        if not path.exists():
            with replacing(path) as temporary:
                download(url, temporary, _TARBALL_ADVICE)
                _require_whole(temporary, url)
    return path


def _require_whole(path: Path, url: str) -> None:
    """Raises `UserError` where not all of an archive can be read."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if (content := archive.extractfile(member)) is not None:
                    while content.read(1 << 20):
                        pass
            while archive.fileobj is not None and archive.fileobj.read(1 << 20):  # to the checksum at its end
                pass
    except _BAD_ARCHIVE as error:
        raise UserError(
            f"what {url} sent is no readable .tar.gz ({one_line(error)}); check the address, or give "
            "--data.flores FOLDER"
        ) from error


def _parquet_sentences(path: Path) -> list[str]:
    try:
        sentences = pq.read_table(path, columns=["text"]).column("text").to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a FLORES+ file with a 'text' column: {one_line(error)}") from error
    if not all(isinstance(sentence, str) for sentence in sentences):
        raise UserError(f"{path} is not a FLORES+ file: column 'text' holds something else than text")
    return _none_blank(sentences, path)


def _plain_sentences(content: bytes, path: Path) -> list[str]:
    try:
        text = plain_line_ends(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {one_line(error)}") from error
    return _none_blank(text.rstrip("\n").split("\n") if text.strip("\n") else [], path)


def _none_blank(sentences: list[str], path: Path) -> list[str]:
    """Returns the sentences; raises `UserError` where one is blank: left out, it would shift those after it."""
    blank = next((number for number, sentence in enumerate(sentences, 1) if not sentence.strip()), None)
    if blank is not None:
        raise UserError(
            f"{path} has nothing in sentence {blank} of {len(sentences)}; expected one in every row, as in the "
            "languages beside it: give another --data.flores"
        )
    return sentences


def _lacks(source: str, language: Language, code: str) -> UserError:
    return UserError(f"FLORES ({source}) has no {language}: no {code}; take it off --data.watch, or give a folder")


def require_room(block_size: int) -> None:
    """Raises `UserError` where a block has no room beside its start token."""
    if block_size < 2:
        raise UserError(f"--data.block_size is {block_size}; expected 2 or more: a start token and text to predict")


def join_blocks(sentences: list[str], tokenizer: PreTrainedTokenizerBase, block_size: int) -> list[FloresBlock]:
    """Joins sentences with spaces into blocks of at most ``block_size`` tokens, in order; a longer sentence is split.

    Every block begins with a start token, so that all tokens of the text are predicted and bits per byte count all of
    its bytes: BOS where the tokenizer itself begins a text with it, else EOS, which ends a document in training. The
    bytes of a sentence that is split count in its first block.

    Raises:
        UserError: A block has no room beside its start token.
    """
    require_room(block_size)
    room = block_size - 1
    begin = start_token(tokenizer)
    head = torch.tensor([tokenizer.eos_token_id if begin is None else begin])
    blocks: list[FloresBlock] = []
    # The tail of a split sentence is joined with what follows it, up to a full block.
    for run, ids in join_sentences(sentences, tokenizer, lambda first: room * max(1, -(-first // room))):
        if not ids:
            continue
        pieces = torch.tensor(ids).split(room)
        text_bytes = [len(" ".join(run).encode()), *(0 for _ in pieces[1:])]
        if len(pieces) > 1 and len(run) > 1:
            text_bytes[0] = len(run[0].encode())
            text_bytes[-1] = len(" ".join(["", *run[1:]]).encode())
        blocks += [FloresBlock(torch.cat([head, piece]), size) for piece, size in zip(pieces, text_bytes, strict=True)]
    return blocks

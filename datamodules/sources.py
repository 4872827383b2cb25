"""Where text comes from: GlotCC on the hub, a folder in its layout, or the user's own files.

A source yields batches of documents with a position that can be stored as JSON and read on from.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from datamodules.text_files import (
    Row,
    content_digest,
    expand,
    open_parquet,
    parquet_text_bytes,
    plain_line_ends,
    read_rows,
    require_readable,
)
from lightning_app.errors import UserError
from lightning_app.files import JSON, digest
from lightning_app.hub import UnreachableError, has_given_up, hub_errors, hub_host, wait_and_say
from lightning_app.languages import Language
from lightning_app.progress import ByteProgress
from lightning_app.run import is_first_process

if TYPE_CHECKING:  # a second of imports, for a stream that a cache spares
    from datasets import IterableDataset

_BATCH = 256
_REOPENINGS = 3
_WAIT_S = 2.0

Identity = dict[str, str]
Position = JSON | None
DocumentBatches = Iterator[tuple[list[str], Position]]
RowBatches = Iterator[tuple[list[Row], Position]]


class TextSource(Protocol):
    """Documents of one language in a fixed order."""

    def identity(self) -> Identity:
        """Returns data set, configuration and revision: what the tokens depend on besides the tokenizer."""
        ...

    def identity_without_revision(self) -> Identity:
        """Returns what of the identity is known without looking at the source."""
        ...

    def batches(self, position: Position) -> DocumentBatches:
        """Yields lists of documents, each with the position after it, starting at ``position`` (None: the start)."""
        ...

    def rows(self, position: Position, columns: Sequence[str]) -> RowBatches:
        """Yields the same with those ``columns`` that the data set has of each document."""
        ...

    def sizes(self) -> tuple[int, int]:
        """Returns about how many bytes of text there are, and how many bytes are read over the network for them."""
        ...


class NoTextError(UserError):
    """There is no text of a language, or not enough of it."""


@dataclass
class HubSource:
    """A configuration of a data set on the Hugging Face hub, streamed.

    Args:
        repository: Data set with one configuration per GlotCC code.
        language: Whose documents.
        revision: Branch, tag or commit.
    """

    repository: str
    language: Language
    revision: str

    def identity(self) -> Identity:
        """Returns the identity with the revision resolved to a commit.

        Raises:
            UserError: No such repository or revision, or it is gated; `UnreachableError` without a network.
        """
        with hub_errors(
            self.repository,
            "run the same command again with a network, or give text with --data.source FOLDER or --data.files",
        ):
            commit = HfApi().dataset_info(self.repository, revision=self.revision).sha
        return {**self.identity_without_revision(), "revision": str(commit)}

    def identity_without_revision(self) -> Identity:
        return {"data_set": self.repository, "configuration": self.language.glotcc}

    def batches(self, position: Position) -> DocumentBatches:
        """Yields documents; a connection that breaks is opened again at the last position, a few times in a row."""
        for rows, after in self.rows(position, ()):
            yield [str(row["content"]) for row in rows], after

    def rows(self, position: Position, columns: Sequence[str]) -> RowBatches:
        failures = 0
        while True:
            try:
                for rows, after in self._read(position, columns):
                    failures, position = 0, after
                    yield rows, position
                return
            except UnreachableError as error:
                failures += 1
                if has_given_up(error) or failures > _REOPENINGS:
                    raise
                reason = f"stopped sending {self.repository}"
                wait_and_say(hub_host(), reason, _WAIT_S**failures, failures + 1, _REOPENINGS + 1)

    def _read(self, position: Position, columns: Sequence[str]) -> RowBatches:
        stream = self._stream(columns)
        if position is not None:
            stream.load_state_dict(position)
        batches = stream.iter(batch_size=_BATCH)
        try:
            with hub_errors(self.repository, "run the same command again: it goes on where it stopped"):
                for batch in batches:
                    rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
                    yield [_with_plain_text(row) for row in rows if row["content"]], stream.state_dict()
        except (pa.ArrowException, UnicodeError) as error:
            raise UserError(f"a file of {self.repository} is damaged: {' '.join(str(error).split())[:200]}") from error
        finally:
            # An unfinished stream can abort the interpreter at exit: close it before it is forgotten.
            if hasattr(batches, "close"):
                batches.close()
            del batches, stream

    def sizes(self) -> tuple[int, int]:
        """Returns about the bytes of text, by the share that it has of the first file, and the bytes of all files."""
        files: Any = HfFileSystem()
        with hub_errors(self.repository, "run the same command again with a network"):
            folder = f"datasets/{self.repository}@{quote(self.revision, safe='')}/v1.0/{self.language.glotcc}"
            try:
                shards = [file for file in files.ls(folder) if file["name"].endswith(".parquet")]
            except FileNotFoundError as error:
                if isinstance(error.__cause__, RepositoryNotFoundError | RevisionNotFoundError):
                    raise
                raise self._lacks() from error
            if not shards:
                raise self._lacks()
            total = sum(file["size"] for file in shards)
            with files.open(shards[0]["name"]) as first:
                text = parquet_text_bytes(pq.ParquetFile(first))
        return round(text * total / shards[0]["size"]), total

    def _lacks(self) -> UserError:
        return NoTextError(
            f"{self.repository} has no {self.language}: no configuration '{self.language.glotcc}'; "
            "check the code, or give your own text with --data.files"
        )

    def _stream(self, columns: Sequence[str]) -> "IterableDataset":
        from datasets import load_dataset
        from datasets.exceptions import DataFilesNotFoundError

        with hub_errors(self.repository, "run the same command again once it can be reached"):
            try:
                stream = load_dataset(
                    self.repository, self.language.glotcc, split="train", streaming=True, revision=self.revision
                )
                known = stream.column_names or ()
                return stream.select_columns(["content", *(name for name in columns if name in known)])
            except DataFilesNotFoundError as error:
                raise self._lacks() from error
            except ValueError as error:
                if "BuilderConfig" in str(error):
                    raise self._lacks() from error
                if isinstance(error, HfHubHTTPError):
                    raise
                raise UserError(
                    f"{self.repository} does not have GlotCC's layout: {' '.join(str(error).split())[:200]}; "
                    "check --data.source"
                ) from error


@dataclass
class FileSource:
    """Local files: .parquet with a ``content`` or ``text`` column, .jsonl with such a key, or UTF-8 .txt.

    In .txt, blank lines separate documents. Files are read in the given order.
    """

    files: list[Path]
    configuration: str

    def identity(self) -> Identity:
        """Returns an identity over names and contents of the files; raises `UserError` where one cannot be read."""
        for path in self.files:
            require_readable(path)
        title, size = f"reading text of {self.configuration}", sum(path.stat().st_size for path in self.files)
        with ByteProgress(title, size, is_shown=is_first_process(), is_brief=True) as progress:
            parts = [[path.name, content_digest(path, progress.advance)] for path in self.files]
        return {**self.identity_without_revision(), "revision": digest(parts)}

    def identity_without_revision(self) -> Identity:
        folder = str(self.files[0].parent.name) if self.files else ""
        return {"data_set": f"files in {folder}", "configuration": self.configuration}

    def batches(self, position: Position) -> DocumentBatches:
        for rows, after in self.rows(position, ()):
            yield [str(row["content"]) for row in rows], after

    def rows(self, position: Position, columns: Sequence[str]) -> RowBatches:
        position = position or {"file": 0, "offset": 0}
        for index in range(position["file"], len(self.files)):
            path = self.files[index]
            offset = position["offset"] if index == position["file"] else 0
            for rows, after in read_rows(path, offset, _BATCH, columns):
                yield rows, {"file": index, "offset": after}

    def sizes(self) -> tuple[int, int]:
        """Returns the bytes of text, those of .txt and .jsonl with their markup, and nothing to download."""
        texts = [
            parquet_text_bytes(open_parquet(path)) if path.suffix == ".parquet" else path.stat().st_size
            for path in self.files
        ]
        return sum(texts), 0


def open_source(source: str, language: Language, revision: str, files: list[str] | None = None) -> TextSource:
    """Returns where a language's text comes from: ``files`` if given, else a folder in GlotCC's layout, else the hub.

    Raises:
        NoTextError: The folder lacks the language.
    """
    if files:
        return FileSource([path for pattern in files for path in expand(pattern)], language.glotcc)
    folder = Path(source).expanduser()
    if not os.path.isdir(folder):
        if source.startswith((".", "/", "~")) or source.count("/") != 1:
            shown = source if len(source) < 200 else f"{source[:200]}..."
            raise UserError(f"--data.source {shown} is neither a folder here nor a data set OWNER/NAME on the hub")
        return HubSource(source, language, revision)
    root = next((r for r in (folder, folder / "cis-lmu" / "GlotCC-V1") if (r / "v1.0").is_dir()), folder)
    shards = sorted((root / "v1.0" / language.glotcc).glob("*.parquet"), key=_shard_number)
    if not shards:
        raise NoTextError(
            f"{folder} has no {language}: no {root / 'v1.0' / language.glotcc}/*.parquet; "
            "check the code, or give your own text with --data.files"
        )
    return FileSource(shards, language.glotcc)


def _with_plain_text(row: Row) -> Row:
    return {**row, "content": plain_line_ends(str(row["content"]))}


def _shard_number(path: Path) -> tuple[int, str]:
    digits = path.stem.rsplit("_", 1)[-1]
    return (int(digits) if digits.isdigit() else 0, path.name)

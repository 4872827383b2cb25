"""Where text comes from: GlotCC on the hub, a folder in its layout, or the user's own files.

A source yields batches of documents with a position that can be stored as JSON and read on from.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import pyarrow.parquet as pq
from datasets import IterableDataset, load_dataset
from huggingface_hub import HfApi, HfFileSystem

from lightning_app.errors import UserError
from lightning_app.files import JSON, digest
from lightning_app.hub import hub_errors
from lightning_app.languages import Language

_BATCH = 256
_DOCUMENT_CHARACTERS = 1_000_000
_TEXT_COLUMNS = ("content", "text")

Identity = dict[str, str]
Position = JSON | None
DocumentBatches = Iterator[tuple[list[str], Position]]


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

    def sizes(self) -> tuple[int, int]:
        """Returns about how many bytes of text there are, and how many bytes are read over the network for them."""
        ...


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
        stream = self._stream()
        if position is not None:
            stream.load_state_dict(position)
        batches = stream.iter(batch_size=_BATCH)
        try:
            with hub_errors(self.repository, "run the same command again: it goes on where it stopped"):
                for batch in batches:
                    yield batch["content"], stream.state_dict()
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
                raise self._lacks() from error
            total = sum(file["size"] for file in shards)
            with files.open(shards[0]["name"]) as first:
                text = _parquet_text_bytes(pq.ParquetFile(first))
        return round(text * total / shards[0]["size"]), total

    def _lacks(self) -> UserError:
        return UserError(
            f"{self.repository} has no {self.language}: no configuration '{self.language.glotcc}'; "
            "check the code, or give your own text with --data.files"
        )

    def _stream(self) -> IterableDataset:
        with hub_errors(self.repository, "run the same command again once it can be reached"):
            try:
                stream = load_dataset(
                    self.repository, self.language.glotcc, split="train", streaming=True, revision=self.revision
                )
            except ValueError as error:
                if "BuilderConfig" in str(error):
                    raise self._lacks() from error
                raise
        return stream.select_columns(["content"])


@dataclass
class FileSource:
    """Local files: .parquet with a ``content`` or ``text`` column, .jsonl with such a key, or UTF-8 .txt.

    In .txt, blank lines separate documents. Files are read in the given order.
    """

    files: list[Path]
    configuration: str

    def identity(self) -> Identity:
        """Returns an identity over names, sizes and ends of the files; raises `UserError` where one cannot be read."""
        parts = []
        for path in self.files:
            if not path.is_file():
                raise UserError(f"there is no text file at {path}; check --data.files")
            if path.suffix not in _READERS:
                raise UserError(f"cannot read {path}: expected one of {', '.join(_READERS)}")
            with path.open("rb") as file:
                head = file.read(1 << 20)
                file.seek(max(0, path.stat().st_size - (1 << 20)))
                parts.append([path.name, path.stat().st_size, head.hex()[:4096], digest(head.hex(), file.read().hex())])
        return {**self.identity_without_revision(), "revision": digest(parts)}

    def identity_without_revision(self) -> Identity:
        folder = str(self.files[0].parent.name) if self.files else ""
        return {"data_set": f"files in {folder}", "configuration": self.configuration}

    def batches(self, position: Position) -> DocumentBatches:
        position = position or {"file": 0, "offset": 0}
        for index in range(position["file"], len(self.files)):
            path = self.files[index]
            offset = position["offset"] if index == position["file"] else 0
            for documents, after in _READERS[path.suffix](path, offset):
                yield documents, {"file": index, "offset": after}

    def sizes(self) -> tuple[int, int]:
        """Returns the bytes of text, those of .txt and .jsonl with their markup, and nothing to download."""
        texts = [
            _parquet_text_bytes(_open_parquet(path)) if path.suffix == ".parquet" else path.stat().st_size
            for path in self.files
        ]
        return sum(texts), 0


def _parquet_text_bytes(file: pq.ParquetFile) -> int:
    """Returns the bytes of the text column by the file's metadata."""
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema in _TEXT_COLUMNS)


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable parquet file: {error}") from error


def _read_parquet(path: Path, row: int) -> Iterator[tuple[list[str], int]]:
    file = _open_parquet(path)
    column = next((name for name in _TEXT_COLUMNS if name in file.schema_arrow.names), None)
    if column is None:
        raise UserError(f"{path} has no column 'content' or 'text', only {', '.join(file.schema_arrow.names)}")
    start = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if start + rows > row:
            texts = file.read_row_group(group, columns=[column]).column(0).to_pylist()
            for first in range(max(0, row - start), rows, _BATCH):
                batch = texts[first : first + _BATCH]
                yield [text for text in batch if text], start + first + len(batch)
        start += rows


def _read_text(path: Path, offset: int) -> Iterator[tuple[list[str], int]]:
    """Yields documents and byte offsets. Lines end at a line feed only: corpora contain other separators."""
    documents: list[str] = []
    lines: list[str] = []
    size = 0
    for line, after in _lines(path, offset):
        if line.strip():
            lines.append(line)
            size += len(line)
        if lines and (not line.strip() or size >= _DOCUMENT_CHARACTERS):
            documents.append("".join(lines).strip("\n"))
            lines, size = [], 0
        if len(documents) >= _BATCH and not lines:
            yield documents, after
            documents = []
    if lines:
        documents.append("".join(lines).strip("\n"))
    if documents:
        yield documents, path.stat().st_size


def _read_jsonl(path: Path, offset: int) -> Iterator[tuple[list[str], int]]:
    documents: list[str] = []
    after = offset
    for line, after in _lines(path, offset):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} has a line that is no JSON, ending at byte {after}: {error}") from error
        text = next((row[key] for key in _TEXT_COLUMNS if isinstance(row, dict) and key in row), None)
        if not isinstance(text, str):
            raise UserError(f"{path} has a line without a string 'content' or 'text', ending at byte {after}")
        documents.append(text)
        if len(documents) >= _BATCH:
            yield documents, after
            documents = []
    if documents:
        yield documents, after


def _lines(path: Path, offset: int) -> Iterator[tuple[str, int]]:
    with path.open("rb") as file:
        file.seek(offset)
        for raw in file:
            try:
                yield raw.decode("utf-8-sig" if offset == 0 else "utf-8"), offset + len(raw)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} is not UTF-8: byte {offset + error.start} is 0x{raw[error.start]:02x}; "
                    "convert it, for example with iconv"
                ) from error
            offset += len(raw)


_READERS = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".txt": _read_text}


def open_source(source: str, language: Language, revision: str, files: list[str] | None = None) -> TextSource:
    """Returns where a language's text comes from: ``files`` if given, else a folder in GlotCC's layout, else the hub.

    Raises:
        UserError: The folder lacks the language.
    """
    if files:
        return FileSource([path for pattern in files for path in _expand(pattern)], language.glotcc)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise UserError(f"--data.source {source} is neither a folder here nor a data set OWNER/NAME on the hub")
        return HubSource(source, language, revision)
    root = next((r for r in (folder, folder / "cis-lmu" / "GlotCC-V1") if (r / "v1.0").is_dir()), folder)
    shards = sorted((root / "v1.0" / language.glotcc).glob("*.parquet"), key=_shard_number)
    if not shards:
        raise UserError(
            f"{folder} has no {language}: no {root / 'v1.0' / language.glotcc}/*.parquet; "
            "check the code, or give your own text with --data.files"
        )
    return FileSource(shards, language.glotcc)


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in _READERS)
    if any(mark in pattern for mark in "*?["):
        return sorted(Path(path.anchor or os.curdir).glob(str(path.relative_to(path.anchor) if path.anchor else path)))
    return [path]


def _shard_number(path: Path) -> tuple[int, str]:
    digits = path.stem.rsplit("_", 1)[-1]
    return (int(digits) if digits.isdigit() else 0, path.name)

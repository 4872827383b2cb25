r"""Files of text: what they hold, document by document, and one line for those that cannot be read.

Text is text: "\r\n" and a lone "\r" are line ends, and a model sees "\n" for both.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_app.errors import UserError

TEXT_COLUMNS = ("content", "text")
_DOCUMENT_CHARACTERS = 1_000_000
_PIECE_BYTES = 1 << 23
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n|$)")
_PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError)

Documents = Iterator[tuple[list[str], int]]
"""Batches of documents, each with the row or byte after it."""

Row = dict[str, object]
"""A document as ``content``, and what a data set says of it in other columns."""


def plain_line_ends(text: str) -> str:
    r"""Returns ``text`` with "\n" at every line end.

    >>> plain_line_ends("a\r\nb\rc\n")
    'a\nb\nc\n'
    """
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def require_readable(path: Path) -> None:
    """Raises `UserError` where ``path`` is no file of text that can be opened."""
    shown = str(path) if len(str(path)) <= 120 else f"{str(path)[:117]}..."
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{shown} is a folder within a folder or pattern; name it, or the files in it")
        if not stat.S_ISREG(mode):
            raise UserError(f"{shown} is no file but a pipe or a device; expected one of {', '.join(READERS)}")
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise UserError(f"there is no text file at {shown}; check --data.files") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"cannot read {shown}: {reason}; check --data.files") from error
    if path.suffix not in READERS:
        raise UserError(f"cannot read {shown}: expected one of {', '.join(READERS)}")


_digests: dict[tuple[Path, int, int], str] = {}


def content_digest(path: Path, seen: Callable[[int], object] = lambda read_bytes: None) -> str:
    """Returns the SHA-256 of a file's whole content; a file that did not change is read once a process.

    Args:
        path: The file.
        seen: Called with the bytes of every piece that was read.
    """
    found = path.stat()
    state = path.absolute(), found.st_size, found.st_mtime_ns
    if state not in _digests:
        sha = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                sha.update(piece)
                seen(len(piece))
        _digests[state] = sha.hexdigest()
    return _digests[state]


def expand(pattern: str) -> list[Path]:
    """Returns the files of a folder or pattern, sorted, or the one file of that name.

    Raises:
        UserError: There is none.
    """
    path = Path(pattern).expanduser()
    if os.path.isdir(path):
        found = sorted(file for file in _listed(path) if file.suffix in READERS)
        if not found:
            raise UserError(f"folder {path} has no {', '.join(READERS)} file; check --data.files")
        return found
    if any(mark in pattern for mark in "*?[") and not os.path.exists(path):
        root = Path(path.anchor or os.curdir)
        found = sorted(root.glob(str(path.relative_to(path.anchor) if path.anchor else path)))
        if not found:
            raise UserError(f"no file matches {pattern}; check --data.files")
        return found
    return [path]


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}; check --data.files") from error


def parquet_text_bytes(file: pq.ParquetFile) -> int:
    """Returns the bytes of the text column by the file's metadata."""
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema in TEXT_COLUMNS)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Returns an open parquet file; raises `UserError` where it is none."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except _PARQUET_ERRORS as error:
        raise UserError(f"{path} is not a readable parquet file: {_short(error)}") from error


def _text_column(path: Path, schema: pa.Schema) -> str:
    column = next((name for name in TEXT_COLUMNS if name in schema.names), None)
    if column is None:
        raise UserError(f"{path} has no column 'content' or 'text', only {', '.join(schema.names)[:200]}")
    kind = schema.field(column).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_text(plain) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        raise UserError(f"column '{column}' of {path} is {str(kind)[:80]}; expected text (string)")
    return column


def read_parquet_rows(path: Path, row: int, batch_size: int, columns: Sequence[str]) -> Iterator[tuple[list[Row], int]]:
    """Yields rows that have text from number ``row`` on, with those ``columns`` that the file has."""
    file = open_parquet(path)
    column = _text_column(path, file.schema_arrow)
    beside = [name for name in columns if name in file.schema_arrow.names]
    start = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if start + rows > row:
            try:
                table = file.read_row_group(group, columns=[column, *beside])
                texts, others = table[column].to_pylist(), {name: table[name].to_pylist() for name in beside}
            except _PARQUET_ERRORS as error:
                where = f"rows {start + 1} to {start + rows}"
                raise UserError(f"{path} is damaged in {where}: {_short(error)}; make or fetch it again") from error
            for first in range(max(0, row - start), rows, batch_size):
                numbers = range(first, min(first + batch_size, rows))
                yield (
                    [
                        {"content": plain_line_ends(texts[n]), **{name: values[n] for name, values in others.items()}}
                        for n in numbers
                        if texts[n]
                    ],
                    start + numbers.stop,
                )
        start += rows


def _read_parquet(path: Path, row: int, batch_size: int) -> Documents:
    for rows, after in read_parquet_rows(path, row, batch_size, ()):
        yield [str(each["content"]) for each in rows], after


def _read_text(path: Path, offset: int, batch_size: int) -> Documents:
    """Yields documents and byte offsets. Lines end at line feeds and carriage returns only, not at other separators."""
    documents: list[str] = []
    lines: list[str] = []
    size, after = 0, offset
    for line, after in _lines(path, offset):
        if line.strip():
            lines.append(line)
            size += len(line)
        if lines and (not line.strip() or size >= _DOCUMENT_CHARACTERS):
            documents.append("".join(lines).strip("\n"))
            lines, size = [], 0
        if len(documents) >= batch_size and not lines:
            yield documents, after
            documents = []
    if lines:
        documents.append("".join(lines).strip("\n"))
    if documents:
        yield documents, after


def _read_jsonl(path: Path, offset: int, batch_size: int) -> Documents:
    documents: list[str] = []
    after = offset
    for line, after in _lines(path, offset):
        if line.strip():
            documents.append(_json_text(path, line, after))
        if len(documents) >= batch_size:
            yield documents, after
            documents = []
    if documents:
        yield documents, after


def _json_text(path: Path, line: str, after: int) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} line {_line_number(path, after)} is no JSON: {_short(error)}") from error
    text = next((row[key] for key in TEXT_COLUMNS if isinstance(row, dict) and key in row), None)
    if not isinstance(text, str):
        raise UserError(f"{path} line {_line_number(path, after)} is without a string 'content' or 'text'")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        broken = f"half of a character, \\u{ord(text[error.start]):04x}"
        raise UserError(f"{path} line {_line_number(path, after)} holds {broken}; expected whole characters") from error
    return plain_line_ends(text)


def _lines(path: Path, offset: int) -> Iterator[tuple[str, int]]:
    """Yields lines, each ending with a line feed where it has an end, and the byte after each."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            for chunk in file:
                # A lone carriage return ends a line, too, and is never a part of a longer character in UTF-8.
                for raw in _LINE.findall(chunk) if b"\r" in chunk else [chunk]:
                    if raw:
                        yield plain_line_ends(_decoded(path, raw, offset)), offset + len(raw)
                        offset += len(raw)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check --data.files") from error


def _decoded(path: Path, raw: bytes, offset: int) -> str:
    try:
        return raw.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start + (3 if offset == 0 and raw.startswith(b"\xef\xbb\xbf") else 0)
        raise UserError(
            f"{path} is not UTF-8: byte {at} is 0x{error.object[error.start]:02x}, in line "
            f"{_line_number(path, at + 1)}; convert it, for example with iconv"
        ) from error


def _line_number(path: Path, after: int) -> int:
    """Returns the number, from 1, of the line that holds the byte before ``after``."""
    with path.open("rb") as file:
        return len(re.findall(rb"\r\n|\r|\n", file.read(after)[:-1])) + 1


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


READERS: dict[str, Callable[[Path, int, int], Documents]] = {
    ".parquet": _read_parquet, ".jsonl": _read_jsonl, ".txt": _read_text,
}  # fmt: skip


def read_rows(path: Path, offset: int, batch_size: int, columns: Sequence[str]) -> Iterator[tuple[list[Row], int]]:
    """Yields documents of a file of any kind from a row or byte on; only .parquet has ``columns`` beside the text."""
    if path.suffix == ".parquet":
        yield from read_parquet_rows(path, offset, batch_size, columns)
        return
    for documents, after in READERS[path.suffix](path, offset, batch_size):
        yield [{"content": document} for document in documents], after

"""The user's own files: the same text whatever their line ends, and one line for those that are not what they seem."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.sources import FileSource, open_source
from lightning_app.languages import find_language
from tests.faults import fault, refusal

WELSH = find_language("cy")


def read(source, position=None):
    return [document for documents, _ in source.batches(position) for document in documents]


def test_a_byte_changed_in_the_middle_is_other_text(tmp_path):
    path = tmp_path / "a.txt"
    content = b"a" * (5 << 20)
    path.write_bytes(content)
    before = FileSource([path], "cym-Latn").identity()
    assert FileSource([path], "cym-Latn").identity() == before
    path.write_bytes(content[: 5 << 19] + b"b" + content[(5 << 19) + 1 :])
    assert FileSource([path], "cym-Latn").identity() != before


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_line_ends_of_every_kind_are_the_same_text(end, tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.sources._BATCH", 2)
    documents = [f"un {i}\ndau\u2028{i}" for i in range(5)]
    text = "\n\n".join(documents).replace("\n", end)
    (tmp_path / "a.txt").write_bytes(text.encode())
    rows = [document.replace("\n", end) for document in documents]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
    for suffix in ("txt", "jsonl", "parquet"):
        source = FileSource([tmp_path / f"a.{suffix}"], "cym-Latn")
        assert read(source) == documents, suffix
        positions = [position for _, position in source.batches(None)]
        assert read(source, positions[0]) == documents[2:], suffix


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([["a"]]), "list<"),
        (pa.array([{"a": "b"}]), "struct<"),
        (pa.array([b"a"]), "binary"),
        (pa.array([1]), "int64"),
    ],
)
@fault("own parquet whose text column is a {kind}")
def test_parquet_whose_text_is_no_text(column, kind, tmp_path):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with refusal(rf"column 'text' of .*a.parquet is {kind}.*; expected text"):
        read(FileSource([tmp_path / "a.parquet"], "cym-Latn"))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_text_of_every_kind(kind, tmp_path):
    pq.write_table(pa.table({"text": pa.array(["a", None, "", "b"]).cast(kind)}), tmp_path / "a.parquet")
    assert read(FileSource([tmp_path / "a.parquet"], "cym-Latn")) == ["a", "b"]


@fault("own parquet with a corrupt page")
def test_a_corrupt_page_of_parquet_names_its_rows(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [os.urandom(100).hex() for _ in range(100)]
    pq.write_table(pa.table({"text": rows}), path, row_group_size=50, use_dictionary=False, compression="gzip")
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    middle = column.data_page_offset + column.total_compressed_size // 2
    content = bytearray(path.read_bytes())
    content[middle : middle + 100] = bytes(100)
    path.write_bytes(content)
    with refusal(r"a.parquet is damaged in rows 51 to 100: "):
        read(FileSource([path], "cym-Latn"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a \\ud800 b"}', r"line 3 holds half of a character, \\ud800"),
        ("[" * 100_000, "line 3 is no JSON"),
        ('{"text": 1}', "line 3 is without a string"),
        ('{"text": "a', "line 3 is no JSON"),
        ("9" * 10_000, "line 3 is "),
    ],
)
@fault("own JSON lines with {line}")
def test_json_lines_name_file_and_line(line, message, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n' + line + '\n{"text": "b"}\n')
    with refusal(f"a.jsonl {message}"):
        read(FileSource([tmp_path / "a.jsonl"], "cym-Latn"))


@fault("own files that are none: folders, loops, pipes, names too long, nothing")
def test_files_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "sub/a.txt").mkdir(parents=True)
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "real[1].txt").write_text("real")
    for name, message in (
        ("empty", "folder .*empty has no .parquet, .jsonl, .txt file"),
        ("sub", "a.txt is a folder"),
        ("loop.txt", "cannot read .*loop.txt: Too many levels of symbolic links"),
        ("pipe.txt", "pipe.txt is no file but a pipe"),
        ("x" * 300 + ".txt", "cannot read .*xxx.*: File name too long"),
        ("no*thing.txt", r"no file matches .*no\*thing.txt"),
        ("nothing.txt", "there is no text file at .*nothing.txt"),
    ):
        with refusal(message) as error:
            open_source("a/b", WELSH, "main", [str(tmp_path / name)]).identity()
        assert len(str(error.value)) < 300
    assert read(open_source("a/b", WELSH, "main", [str(tmp_path / "real[1].txt")])) == ["real"]
    with refusal("neither a folder"):
        open_source("/" + "x" * 5000, WELSH, "main")


@fault("an own file that may not be read")
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("a")
    path.chmod(0)
    if os.access(path, os.R_OK):

        def refuse(self, *_):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr("pathlib.Path.open", refuse)
    with refusal(r"cannot read .*a.txt: Permission denied"):
        FileSource([path], "cym-Latn").identity()

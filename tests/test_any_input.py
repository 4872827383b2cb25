"""Arbitrary bytes and values in text, YAML, records, FLORES and checkpoints give a result or one line."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from callbacks.run_record import JSONLLogger
from datamodules.flores import read_flores
from datamodules.sources import FileSource
from lightning_app.adapted import load_adapted
from lightning_app.cli.configurations import check_file, resolve_configs
from lightning_app.cli.keys import Keys
from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.cli.plan import PLAN
from lightning_app.comparison.results import read_result
from lightning_app.languages import find_language
from lightning_app.planning.checks import require_checks
from lightning_app.run import RunFolder
from tests.any_input import EXAMPLES, VALUES, property_based, reads_or_one_line
from tests.conftest import ROOT
from tests.runs_by_hand import write_run

pytestmark = pytest.mark.timeout(3000 if EXAMPLES in os.environ else 120)  # an answer is a line, and soon

WELSH = find_language("cy")
LINES = st.lists(st.sampled_from(["a", "b\u2028c", "é", "", " ", "\ufeff"]) | st.text(max_size=4), max_size=8)
BREAKS = st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\n \n"])


def read(source, position=None):
    return [document for documents, _ in source.batches(position) for document in documents]


def damaged(content, flips):
    """Some bytes changed, of those that are there."""
    changed = bytearray(content)
    for share, bit in flips:
        changed[min(int(share * len(changed)), len(changed) - 1)] ^= 1 << bit
    return bytes(changed)


FLIPS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=3)


@property_based
@given(st.sampled_from(["txt", "jsonl", "parquet"]), st.binary(max_size=200))
@example("txt", b"\xef\xbb\xbfa\r\r\nb")
@example("jsonl", b'{"text": "\\ud83d"}')
def test_any_bytes_are_text_or_one_line(tmp_path, suffix, content):
    path = tmp_path / f"any.{suffix}"
    path.write_bytes(content)
    reads_or_one_line(read, FileSource([path], "cym-Latn"))


@property_based
@given(VALUES)
def test_any_value_is_a_line_of_json_or_one_line(tmp_path, value):
    path = tmp_path / "any.jsonl"
    path.write_text(f"{json.dumps(value)}\n{json.dumps({'text': value})}\n", encoding="utf-8")
    reads_or_one_line(read, FileSource([path], "cym-Latn"))


@property_based
@given(FLIPS)
def test_flipped_bits_in_parquet_are_read_or_one_line(tmp_path, flips):
    whole = io.BytesIO()
    pq.write_table(pa.table({"text": [f"dogfen {i}" for i in range(50)]}), whole, write_page_checksum=True)
    path = tmp_path / "any.parquet"
    path.write_bytes(damaged(whole.getvalue(), flips))
    reads_or_one_line(read, FileSource([path], "cym-Latn"))


@property_based
@given(LINES, BREAKS)
def test_text_is_the_same_from_wherever_it_is_gone_on_with(tmp_path, lines, line_break):
    """Documents are the parts between blank lines; every position that is yielded leads to those that follow."""
    path = tmp_path / "own.txt"
    text = line_break.join(line.replace("\r", "").replace("\n", "") for line in lines)
    path.write_bytes(text.encode())
    source = FileSource([path], "cym-Latn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodules.sources._BATCH", 1)
        whole = list(source.batches(None))
        documents = [document for found, _ in whole for document in found]
        plain = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
        expected, current = [], []
        for line in [*plain, ""]:
            if line.strip():
                current.append(line)
            elif current:
                expected.append("\n".join(current))
                current = []
        assert documents == expected
        for index, (_, position) in enumerate(whole):
            assert read(source, position) == documents[index + 1 :]


@property_based
@given(st.binary(max_size=120))
@example(b"? ? ? :")
@example(b"!!python/object:os.system {}")
@example(b"&a [*a, *a]")
def test_any_bytes_are_a_configuration_or_one_line(tmp_path, content):
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    reads_or_one_line(check_file, path, Keys.of("plan"))


def look_at(workplace, folder, key, value):
    """Reads a configuration with one odd value as far as a run does before it loads anything."""
    group, name = key.split(".")[:2]
    path = folder / "any.yaml"
    path.write_text(yaml.safe_dump({group: {name: value}}, allow_unicode=True), encoding="utf-8")
    given = [argument for argument in workplace.adapt("any")[1:] if not argument.startswith(f"--{group}.{name}=")]
    cli = NeuroglotCLI(PLAN, resolve_configs([*given, "--config", str(path)], Keys.of("plan")), False)
    require_checks(cli.model, cli.datamodule, cli.profiling)
    cli.make_fabric()


KEYS = sorted(key for key, kind in Keys.of("plan").kinds.items() if kind != "group" and key.count(".") == 1)
ODD = [None, [], {}, "", -1, 0, 1e300, True, "é\x00", [[1]], {"a": {"b": None}}]
SOME = list(zip(["data.files", "model.betas", "profiling.languages", "trainer.devices"] * 3, ODD, strict=False))


@pytest.mark.parametrize(("key", "value"), SOME, ids=repr)
def test_an_odd_value_is_used_or_one_line(key, value, workplace, tmp_path):
    reads_or_one_line(look_at, workplace, tmp_path, key, value)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_any_odd_value_of_any_key_is_used_or_one_line(workplace, tmp_path):
    for key in KEYS:
        for value in ODD:
            with named(f"{key}: {value!r}"):
                reads_or_one_line(look_at, workplace, tmp_path, key, value)


@contextlib.contextmanager
def named(case):
    """Names the case that failed."""
    try:
        yield
    except Exception as error:
        error.add_note(case)
        raise


@property_based
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_any_key_is_used_or_one_line(workplace, tmp_path, key, value):
    reads_or_one_line(look_at, workplace, tmp_path, key, value)


def tarball(content):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for split in ("dev", "devtest"):
            member = tarfile.TarInfo(f"./flores200_dataset/{split}/cym_Latn.{split}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return whole.getvalue()


@property_based
@given(st.sampled_from(["cym_Latn.parquet", "cym_Latn.dev", "f.tar.gz"]), st.binary(max_size=200), st.booleans(), FLIPS)
def test_any_bytes_are_flores_or_one_line(tmp_path_factory, name, content, is_tarball, flips):
    folder = tmp_path_factory.mktemp("flores")
    for split in ("dev", "devtest"):
        path = folder / name if name == "f.tar.gz" else folder / split / name.replace(".dev", f".{split}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(damaged(tarball(content), flips) if is_tarball else content)
    source = str(folder / name) if name == "f.tar.gz" else str(folder)
    reads_or_one_line(read_flores, source, WELSH, "dev", folder)


PARTS = (
    "status",
    "configuration",
    "result",
    "before",
    "best",
    "targets",
    "base",
    "lr",
    "seed",
    "settings",
    "text",
    "x",
)


@property_based
@given(st.sampled_from(PARTS), VALUES, st.sampled_from(["run.json", "scaled.json", "evaluation.json"]))
def test_any_value_in_the_records_of_a_run_is_used_or_one_line(tmp_path_factory, key, value, name):
    folder = write_run(tmp_path_factory.mktemp("runs") / "a")
    record = json.loads(folder.record_file.read_text())
    (record["result"] if key in record["result"] else record)[key] = value
    (folder.path / name).write_text(json.dumps(record if name == "run.json" else value))
    reads_or_one_line(read_result, folder)
    reads_or_one_line(folder.text_revision, "x")
    if name == "scaled.json":
        reads_or_one_line(folder.read_scaled)


@property_based
@given(st.binary(max_size=120))
@example(b"[]")
@example(b"3")
@example(b"\xff")
@example(b"[" * 100_000)
@example(b'{"step": NaN}\n{"step": "3"}\n{"step": [1]}\n{"time": 1}\n"step"\nnull')
def test_any_bytes_are_records_of_a_run_or_one_line(tmp_path, content):
    folder = RunFolder(tmp_path / "a")
    folder.path.mkdir(exist_ok=True)
    for file in (folder.record_file, folder.scaled, folder.metrics):
        file.write_bytes(content)
    reads_or_one_line(read_result, folder)
    reads_or_one_line(folder.read_scaled)
    JSONLLogger(folder.metrics).rewind(5)  # a line that is none is dropped
    for line in folder.metrics.read_text().split("\n")[:-1]:
        assert json.loads(line)["step"] <= 5


@settings(property_based, max_examples=8)
@given(st.data())
def test_any_value_in_a_checkpoint_is_used_or_one_line(workplace, tmp_path_factory, data):
    best = RunFolder(workplace.folder / "runs/adapted").best_checkpoint()
    content = torch.load(best, weights_only=True)
    own = content["neuroglot"]
    where = [content, own, own["base"], own["keys"]][data.draw(st.integers(0, 3))]
    where[data.draw(st.sampled_from(sorted(where)))] = data.draw(VALUES)
    path = tmp_path_factory.mktemp("checkpoint") / "any.ckpt"
    torch.save(content, path)
    reads_or_one_line(load_adapted, path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", ["test_any_input.py", "test_damaged_files.py"])
def test_a_longer_search_finds_nothing_more(file, tmp_path):
    """Twenty times as many examples, others each time; in a process of its own, which reads how many at its start."""
    command = [sys.executable, "-m", "pytest", "-m", "not slow", "-k", "any or flipped or edited", f"tests/{file}"]
    command += ["-p", "no:cacheprovider", f"--basetemp={tmp_path}", "--timeout=3000"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, EXAMPLES: "300"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]

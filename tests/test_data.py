import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datamodules import flores, token_cache
from datamodules.chunking import PackedBlocks, usable_tokens
from datamodules.order import ResumableBatches, training_order
from datamodules.sources import FileSource, open_source
from datamodules.tokenizers import train_tokenizer
from lightning_app.errors import UserError
from lightning_app.languages import find_language
from tests.conftest import ROOT

LATIN = find_language("qaa-Latn")


@pytest.fixture(scope="module")
def tokenizer(hub, tmp_path_factory):
    sources = [(open_source(str(hub), find_language(code), "main"), 1.0) for code in ("qaa-Latn", "qag-Geor")]
    return train_tokenizer(sources, 400, tmp_path_factory.mktemp("tokenizer"))


def fill(hub, tokenizer, root, budget, chunking="packed", language=LATIN):
    source = open_source(str(hub), language, "main")
    return token_cache.fill(
        root, source, tokenizer, budget, lambda n: usable_tokens(chunking, 64, n), "filling", is_shown=False
    )


def read_documents(hub, code="qaa-Latn"):
    return pq.read_table(hub / f"cis-lmu/GlotCC-V1/v1.0/{code}/{code}_0.parquet")["content"].to_pylist()


def tokens_of(tokenizer, documents):
    return [tokenizer(document, add_special_tokens=False)["input_ids"] for document in documents]


def test_the_cache_holds_the_documents_tokens_in_order(hub, tokenizer, tmp_path):
    cache = fill(hub, tokenizer, tmp_path, 10**9)
    expected = tokens_of(tokenizer, read_documents(hub))
    assert cache.is_exhausted
    assert cache.documents == len(expected)
    assert cache.open_tokens().tolist() == [token for document in expected for token in document]
    assert cache.read_ends().tolist() == np.cumsum([len(document) for document in expected]).tolist()


def test_filling_stops_at_the_budget_and_a_larger_budget_goes_on(hub, tokenizer, tmp_path):
    small = fill(hub, tokenizer, tmp_path / "grown", 20_000)
    assert 20_000 <= small.tokens + small.documents < 60_000
    assert not small.is_exhausted
    grown = fill(hub, tokenizer, tmp_path / "grown", 10**9)
    at_once = fill(hub, tokenizer, tmp_path / "at_once", 10**9)
    assert grown.folder.name == small.folder.name == at_once.folder.name
    assert np.array_equal(grown.open_tokens(), at_once.open_tokens())
    assert np.array_equal(grown.read_ends(), at_once.read_ends())


def test_another_tokenizer_or_text_is_another_cache(hub, tokenizer, tmp_path):
    first = fill(hub, tokenizer, tmp_path, 1000)
    other = train_tokenizer([(open_source(str(hub), LATIN, "main"), 1.0)], 300, tmp_path)
    assert fill(hub, other, tmp_path, 1000).folder != first.folder
    assert fill(hub, tokenizer, tmp_path, 1000, language=find_language("qab-Latn")).folder != first.folder


def test_garbage_beyond_the_manifest_is_cut_off(hub, tokenizer, tmp_path):
    cache = fill(hub, tokenizer, tmp_path / "torn", 20_000)
    for name in ("tokens.bin", "ends.bin"):
        with (cache.folder / name).open("ab") as file:
            file.write(b"torn write")
    grown = fill(hub, tokenizer, tmp_path / "torn", 10**9)
    assert np.array_equal(grown.open_tokens(), fill(hub, tokenizer, tmp_path / "whole", 10**9).open_tokens())


_FILL = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from datamodules import token_cache
from datamodules.chunking import usable_tokens
from datamodules.sources import open_source
from lightning_app.model.base import load_tokenizer
from lightning_app.languages import find_language
token_cache._COMMIT_EVERY_S = 0.0
source = open_source({hub!r}, find_language("qaa-Latn"), "main")
batches = source.batches
def slow(position):
    for batch in batches(position):
        print("batch", flush=True)
        time.sleep({pause})
        yield batch
source.batches = slow
cache = token_cache.fill(Path({out!r}), source, load_tokenizer({tokenizer!r}), 10**9,
                         lambda n: usable_tokens("packed", 64, n), "filling", False)
print("tokens", cache.tokens, flush=True)
"""


def start_filling(hub, tokenizer, out, folder, pause):
    tokenizer.save_pretrained(folder)
    script = _FILL.format(root=str(ROOT), hub=str(hub), out=str(out), tokenizer=str(folder), pause=pause)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_a_killed_fill_goes_on_where_it_stopped(hub, tokenizer, tmp_path):
    process = start_filling(hub, tokenizer, tmp_path / "killed", tmp_path / "tokenizer", pause=0.3)
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    manifest = json.loads(next((tmp_path / "killed").glob("*/manifest.json")).read_text())
    assert 0 < manifest["documents"] < len(read_documents(hub))
    killed = fill(hub, tokenizer, tmp_path / "killed", 10**9)
    whole = fill(hub, tokenizer, tmp_path / "whole", 10**9)
    assert np.array_equal(killed.open_tokens(), whole.open_tokens())


def test_processes_that_fill_at_once_make_one_good_cache(hub, tokenizer, tmp_path):
    processes = [
        start_filling(hub, tokenizer, tmp_path / "shared", tmp_path / f"tokenizer{i}", pause=0.02) for i in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    filled = ["batch" in output for output in outputs]
    whole = fill(hub, tokenizer, tmp_path / "whole", 10**9)
    assert sorted(filled) == [False, True]
    assert {output.strip().split("\n")[-1] for output in outputs} == {f"tokens {whole.tokens}"}


def test_packed_blocks_are_the_documents_joined_by_eos(hub, tokenizer, tmp_path):
    cache = fill(hub, tokenizer, tmp_path, 10**9)
    eos = tokenizer.eos_token_id
    stream = [token for document in tokens_of(tokenizer, read_documents(hub)) for token in [*document, eos]]
    for size in (7, 64, 1000):
        blocks = PackedBlocks(cache, size, 10**9, eos)
        assert len(blocks) == len(stream) // size
        assert torch.cat([blocks[i] for i in range(len(blocks))]).tolist() == stream[: len(blocks) * size]
    plain = PackedBlocks(cache, 64, 10**9, None)
    joined = [token for token in stream if token != eos]
    assert torch.cat([plain[i] for i in range(len(plain))]).tolist() == joined[: len(plain) * 64]


def test_a_budget_takes_the_first_blocks_whatever_the_cache_holds(hub, tokenizer, tmp_path):
    small = PackedBlocks(fill(hub, tokenizer, tmp_path / "a", 5_000), 64, 5_000, 0)
    large = PackedBlocks(fill(hub, tokenizer, tmp_path / "b", 10**9), 64, 5_000, 0)
    assert len(small) == len(large) == 5_000 // 64
    assert all(torch.equal(small[i], large[i]) for i in range(len(small)))


def test_usable_tokens_of_paper_chunks_are_those_of_pieces_of_half_a_block(hub, tokenizer, tmp_path):
    cache = fill(hub, tokenizer, tmp_path, 10**9, "paper")
    pieces = [
        len(document[i : i + 300]) for document in tokens_of(tokenizer, read_documents(hub))
        for i in range(0, len(document), 300)
    ]  # fmt: skip
    lengths = np.diff(cache.read_ends(), prepend=0)
    assert usable_tokens("paper", 300, lengths) == sum(size for size in pieces if size >= 150)


def test_order_is_a_function_of_the_seed_alone_and_mixes_evenly():
    order = training_order([50, 30], [100, 30], seed=1)
    assert torch.equal(order, training_order([50, 30], [100, 30], seed=1))
    assert not torch.equal(order, training_order([50, 30], [100, 30], seed=2))
    first = order[order < 50]
    assert sorted(first[:50].tolist()) == sorted(first[50:].tolist()) == list(range(50))
    assert not torch.equal(first[:50], first[50:])
    assert 5 < (order[:65] >= 50).sum() < 25


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_order_and_resume_exactly_on_any_number_of_processes(world_size):
    order = training_order([100], [100], seed=0)

    def consumed(world, start=0):
        per_rank = [list(ResumableBatches(order, 2, rank, world, start)) for rank in range(world)]
        assert len({len(batches) for batches in per_rank}) == 1
        steps = zip(*per_rank, strict=True)
        return [sorted(i for batch in step for i in batch) for step in steps]

    steps = consumed(world_size)
    expected = [
        sorted(order[s : s + 2 * world_size].tolist()) for s in range(0, 100 - 2 * world_size + 1, 2 * world_size)
    ]
    assert steps == expected
    done = 12  # a multiple of every step size
    assert consumed(world_size, done) == expected[done // (2 * world_size) :]
    assert len(ResumableBatches(order, 2, 0, 1, consumed=12, batches_done=6)) == 50


def test_flores_blocks_predict_every_token_and_count_every_byte(hub, tokenizer):
    sentences = flores.read_flores(str(hub), LATIN, "dev", hub)
    blocks = flores.join_blocks(sentences, tokenizer, 64)
    assert all(len(block.input_ids) <= 64 and block.input_ids[0] == tokenizer.bos_token_id for block in blocks)
    text = "".join(tokenizer.decode(block.input_ids[1:]) for block in blocks)
    assert text.replace(" ", "") == "".join(sentences).replace(" ", "")
    assert sum(block.text_bytes for block in blocks) == len(text.encode())


def test_dev_loses_what_devtest_holds(tmp_path):
    for split, lines in (("dev", ["a", "b", "c"]), ("devtest", ["b", "d"])):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"qaa_Latn.{split}").write_text("\n".join(lines) + "\n")
    assert flores.read_flores(str(tmp_path), LATIN, "dev", tmp_path) == ["a", "c"]
    assert flores.read_flores(str(tmp_path), LATIN, "devtest", tmp_path) == ["b", "d"]


def test_the_tarball_reads_like_the_folder(tmp_path):
    for split in ("dev", "devtest"):
        folder = tmp_path / "flores200_dataset" / split
        folder.mkdir(parents=True)
        (folder / f"est_Latn.{split}").write_text(f"üks {split}\u2028lause\nkaks {split}\n", encoding="utf-8")
    archive = tmp_path / "flores200_dataset.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "flores200_dataset", "./flores200_dataset")
    estonian = find_language("et")
    assert flores.read_flores(str(archive), estonian, "devtest", tmp_path) == ["üks devtest\u2028lause", "kaks devtest"]
    assert flores.read_flores(str(tmp_path), estonian, "dev", tmp_path) == ["üks dev\u2028lause", "kaks dev"]
    with pytest.raises(UserError, match="Welsh"):
        flores.read_flores(str(archive), find_language("cy"), "dev", tmp_path)
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(UserError, match="not a readable FLORES-200 tarball"):
        flores.read_flores(str(archive), estonian, "dev", tmp_path)


def read_all(source, position=None):
    return [(documents, after) for documents, after in source.batches(position)]


def test_own_text_of_every_kind_reads_the_same_and_from_any_position(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.sources._BATCH", 2)
    documents = [f"erste zeile {i}\nzweite\u2028zeile\x0b {i}" for i in range(7)]
    (tmp_path / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents), encoding="utf-8")
    import pyarrow as pa

    pq.write_table(pa.table({"text": documents}), tmp_path / "a.parquet", row_group_size=3)
    for suffix in ("txt", "jsonl", "parquet"):
        source = FileSource([tmp_path / f"a.{suffix}"], "deu-Latn")
        batches = read_all(source)
        assert [d for batch, _ in batches for d in batch] == documents, suffix
        for done, (_, position) in enumerate(batches):
            rest = [d for batch, _ in read_all(source, json.loads(json.dumps(position))) for d in batch]
            assert rest == [d for batch, _ in batches[done + 1 :] for d in batch], suffix


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"gut\xff\xfe", "not UTF-8: byte 3 is 0xff"),
        ("a.txt", b"", "no text"),
        ("a.txt", b"\n\n \n", "no text"),
        ("a.jsonl", b"{nonsense", "no JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "without a string"),
        ("a.parquet", b"PAR1nonsense", "not a readable parquet"),
        ("a.docx", b"x", "expected one of"),
    ],
)
def test_bad_text_is_one_line_and_nothing_half_written(name, content, message, tokenizer, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        source = open_source("unused/unused", LATIN, "main", [str(tmp_path / name)])
        token_cache.fill(tmp_path / "cache", source, tokenizer, 100, lambda n: int(n.sum()), "filling", False)
    assert "\n" not in str(error.value)
    for manifest in (tmp_path / "cache").glob("*/manifest.json"):
        assert json.loads(manifest.read_text())["tokens"] == 0


def test_a_folder_without_the_language_says_so_by_name(hub):
    with pytest.raises(UserError, match="Welsh"):
        open_source(str(hub), find_language("cy"), "main")
    with pytest.raises(UserError, match="neither a folder"):
        open_source("./nowhere", LATIN, "main")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_while_caching_is_one_line_and_damages_nothing(hub, tokenizer, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        small = fill(hub, tokenizer, disk, 2_000)
        with pytest.raises(UserError, match="disk is full"):
            fill(hub, tokenizer, disk, 10**9)
        assert sum(path.stat().st_size for path in disk.rglob("*.bin")) < 250_000
        again = fill(hub, tokenizer, disk, 2_000)
        assert np.array_equal(again.open_tokens()[: small.tokens], small.open_tokens())
        assert not list(disk.rglob("*.partial"))
    finally:
        time.sleep(0.1)
        subprocess.run(["umount", "-l", str(disk)], check=True)

"""The paper's text: its script's chunks and validation batches, token for token."""

import pytest
import torch

from datamodules.paper import PaperChunks, paper_batches
from datamodules.token_cache import tokenizer_id
from datamodules.tokenizers import start_token
from tests.tokenizer_kinds import (
    BOS,
    EOS,
    KINDS,
    LATIN,
    ODD,
    TEXTS,
    all_of,
    corpus_of,
    made,
    naive_runs,
    sentences_of,
)


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return made(request.param)


def script_chunks(documents, tokenizer, size, budget):
    """The rules of the paper's script, one document and one piece at a time."""
    chunks, collected = [], 0
    for text in documents:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(text.strip()) < 50 or len(ids) < size // 2:
            continue
        for start in range(0, len(ids), size):
            piece = ids[start : start + size]
            if collected < budget and len(piece) >= size // 2:
                chunks.append(tokenizer.decode(piece, skip_special_tokens=True))
                collected += len(piece)
    encoded = [tokenizer(text, truncation=True, max_length=size)["input_ids"] for text in chunks]
    tokenizer("reset")  # truncation stays set in a tokenizer
    return encoded, collected


@pytest.mark.parametrize("size", [16, 64, 300])
@pytest.mark.parametrize("budget", [1, 700, 1024, 5000, 10**9])
def test_paper_chunks_equal_the_scripts_token_for_token(tokenizer, size, budget, tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.sources._BATCH", 4)
    documents = [*ODD, *TEXTS[:10], *ODD, *TEXTS[-10:], *ODD]
    corpus = corpus_of(tokenizer, documents, tmp_path)
    chunks, _ = corpus.training_blocks(LATIN, budget, "paper", size)
    expected, collected = script_chunks(documents, tokenizer, size, budget)
    assert all_of(chunks) == expected
    assert chunks.tokens == collected
    assert max(map(len, expected)) <= size
    if start_token(tokenizer) is not None:
        assert {ids[0] for ids in expected if ids} == {BOS}


def test_documents_of_few_characters_do_not_count_towards_the_budget(tmp_path, monkeypatch):
    """They have tokens enough, so the fill takes them for text at first: it must go on for more."""
    monkeypatch.setattr("datamodules.sources._BATCH", 2)
    documents = ["\u0f40" * 49] * 40 + TEXTS[:30]
    corpus = corpus_of(made("byte-level"), documents, tmp_path)
    chunks, cache = corpus.training_blocks(LATIN, 2000, "paper", 64)
    assert all_of(chunks) == script_chunks(documents, made("byte-level"), 64, 2000)[0]
    assert chunks.tokens >= 2000
    assert not cache.is_exhausted


def test_few_tokens_are_decoded_to_know_how_many_characters_documents_have(tmp_path):
    tokenizer = made("byte-level with BOS")
    documents = [" ".join(TEXTS[first::9]) for first in range(9)]
    cache = corpus_of(tokenizer, documents, tmp_path).fill(LATIN, 10**9, "paper", 512)
    decoded = []

    class Counted(PaperChunks):
        def _text(self, ids):
            decoded.append(len(ids))
            return super()._text(ids)

    Counted(cache, 512, 10**9, tokenizer)
    assert 0 < sum(decoded) <= 210 * len(documents) < cache.tokens / 5


def test_making_chunks_and_batches_leaves_the_tokenizer_as_it_was(tokenizer, tmp_path):
    before = tokenizer_id(tokenizer), tokenizer.pad_token
    chunks, _ = corpus_of(tokenizer, TEXTS[:10], tmp_path).training_blocks(LATIN, 1000, "paper", 64)
    assert chunks[0].dtype == torch.int64
    paper_batches(TEXTS[:10], tokenizer, 64, 2)
    assert (tokenizer_id(tokenizer), tokenizer.pad_token) == before


@pytest.mark.parametrize("size", [8, 64, 300])
def test_paper_batches_equal_the_scripts(hub, tokenizer, size):
    sentences = ["too short", " ten chars ", *sentences_of(hub), "ten chars ", "x" * 700]
    used = [text for text in sentences if len(text.strip()) > 10]
    texts = [" ".join(run) for run in naive_runs(used, tokenizer, lambda _: size)]
    batches = paper_batches(sentences, tokenizer, size, 3)
    assert [len(batch["input_ids"]) for batch in batches[:-1]] == [3] * (len(batches) - 1)
    assert all(set(batch) == {"input_ids", "attention_mask"} for batch in batches)
    rows = torch.cat([batch["input_ids"] for batch in batches]).tolist()
    masks = torch.cat([batch["attention_mask"] for batch in batches]).tolist()
    ids = [tokenizer(text, truncation=True, max_length=size)["input_ids"] for text in texts]
    tokenizer("reset")
    assert rows == [row + [EOS] * (size - len(row)) for row in ids]
    assert masks == [[1] * len(row) + [0] * (size - len(row)) for row in ids]

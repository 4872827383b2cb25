"""Packed text as models read it: documents between their special tokens, budgets, samples."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.attention import varlen

from datamodules.chunking import DocumentBlocks, PackedBlocks, batch_documents, cut_blocks, usable_tokens
from datamodules.token_cache import TokenCache
from datamodules.tokenizers import start_token
from lightning_app.model.attention import attend_without_masks, require_documents_apart, seen_within_documents
from lightning_app.model.loss import IGNORED, OutputHead, token_loss_sum
from tests.conftest import ARCHITECTURES, tiny_model
from tests.faults import refusal
from tests.tokenizer_kinds import BOS, EOS, KINDS, LATIN, TEXTS, all_of, corpus_of, made


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return made(request.param)


def test_bos_is_found_only_where_the_tokenizer_itself_sets_it():
    found = {kind: start_token(made(kind)) for kind in KINDS}
    assert found == {"byte-level": None, "byte-level with BOS": BOS, "dummy prefix": BOS, "unigram": BOS}


def write_cache(folder, lengths, generator):
    tokens = generator.integers(10, 1000, sum(lengths)).astype(np.uint32)
    tokens.tofile(folder / "tokens.bin")
    np.cumsum(lengths).astype(np.int64).tofile(folder / "ends.bin")
    cache = TokenCache(folder, {"tokens": len(tokens), "documents": len(lengths)})
    return cache, np.split(tokens.astype(np.int64), np.cumsum(lengths)[:-1])


def positions_of(owners):
    return [owners[:place].count(owner) for place, owner in enumerate(owners)]


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 40))])
def test_packed_blocks_are_the_documents_between_their_special_tokens(seed, tmp_path):
    """Against a naive concatenation: empty documents, long ones, blocks of any size, with and without specials."""
    generator = np.random.default_rng(seed)
    longest = int(generator.choice([1, 3, 30, 300]))
    lengths = [0, *generator.integers(0, longest + 1, int(generator.integers(1, 40))).tolist(), 1]
    cache, documents = write_cache(tmp_path, lengths, generator)
    for start, separator in ((None, None), (None, 5), (4, None), (4, 5)):
        around = [[] if token is None else [token] for token in (start, separator)]
        owners = [number for number, document in enumerate(documents) for _ in [*around[0], *document, *around[1]]]
        stream = [token for document in documents for token in [*around[0], *document.tolist(), *around[1]]]
        for size in {1, 2, 3, int(generator.integers(1, 80)), len(stream)}:
            budget = int(generator.choice([10**9, max(1, len(stream) // 2)]))
            blocks = PackedBlocks(cache, size, budget, separator, start)
            count = min(budget, len(stream)) // size
            assert blocks.available == len(stream)
            assert blocks.tokens == count * size
            assert all_of(blocks) == [stream[index * size : (index + 1) * size] for index in range(count)]
            apart = DocumentBlocks(cache, size, budget, separator, start)
            assert all_of(apart) == [
                [block, positions_of(block_documents)]
                for block, block_documents in zip(
                    all_of(blocks), [owners[index * size : (index + 1) * size] for index in range(count)], strict=True
                )
            ]
            with pytest.raises(IndexError):
                blocks[count]
        if separator is not None:
            assert usable_tokens("packed", 7, np.array(lengths), specials=1 + (start is not None)) == len(stream)


def test_training_text_begins_documents_as_the_tokenizer_does(tokenizer, tmp_path):
    corpus = corpus_of(tokenizer, TEXTS[:40], tmp_path)
    head = [] if start_token(tokenizer) is None else [BOS]
    stream = [
        token for text in TEXTS[:40] for token in [*head, *tokenizer(text, add_special_tokens=False)["input_ids"], EOS]
    ]
    blocks, cache = corpus.training_blocks(LATIN, 10**9, "packed", 32)
    assert all_of(blocks) == [stream[i * 32 : (i + 1) * 32] for i in range(len(stream) // 32)]
    assert blocks.available == len(stream)
    plain = cut_blocks("plain", cache, 32, 10**9, EOS, BOS)
    assert not {BOS, EOS} & {token for block in all_of(plain) for token in block}


def test_a_budget_counts_the_special_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.sources._BATCH", 1)
    short = ["ab"] * 100
    for kind, around in (("byte-level", 1), ("byte-level with BOS", 2)):
        folder = tmp_path / kind
        folder.mkdir()
        blocks, cache = corpus_of(made(kind), short, folder).training_blocks(LATIN, 60, "packed", 10)
        each = len(made(kind)("ab", add_special_tokens=False)["input_ids"]) + around
        assert cache.documents == -(-60 // each)
        assert len(blocks) == 6


def test_a_sample_is_the_first_of_the_text_packed_as_in_training(tokenizer, tmp_path):
    corpus = corpus_of(tokenizer, TEXTS[:40], tmp_path)
    sample = list(corpus.sample(LATIN, 3, 50))
    assert [block.tolist() for block in sample] == all_of(corpus.training_blocks(LATIN, 150, "packed", 50)[0])
    assert all(block.dtype == torch.int64 and block.shape == (50,) for block in sample)
    plain = list(corpus.sample(LATIN, 2, 50, special=False))
    first = [token for text in TEXTS[:40] for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert torch.cat(plain).tolist() == first[:100]
    assert 0 < len(list(corpus.sample(LATIN, 10**6, 1000))) < 100
    with refusal("less than one sequence of 1000000"):
        corpus.sample(LATIN, 1, 10**6)


@pytest.fixture(params=["masks", "one mask", "bounds"])
def way_to_attend(request, monkeypatch):
    """Masks as transformers makes them, one for all layers, or the bounds of documents, for kernels that take them.

    torch's kernel is for a GPU alone; here its entrance leads to a plain loop over documents.
    """
    if request.param == "bounds":
        varlen._varlen_attn.register_kernel("cpu")(attend_by_documents)
        varlen._varlen_attn_backward.register_kernel("cpu")(gradients_by_documents)
        monkeypatch.setattr("lightning_app.model.attention.takes_bounds", lambda model, device: True)
    return (lambda model: model) if request.param == "masks" else attend_without_masks


def shares_of(query, key, scale):
    """Returns how much a token takes of each, causally, (heads, tokens, tokens), and the keys that its heads see."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    is_later = torch.ones(len(query), len(query), dtype=torch.bool).triu(1)
    return scores.masked_fill(is_later, -torch.inf).softmax(-1), key


def attend_by_documents(query, key, value, bounds, _, longest, __, is_causal, scale, window, enable_gqa, *options):
    """Returns what torch's kernel returns, (tokens, heads, size), by its meaning."""
    assert (is_causal, list(window), enable_gqa, bounds.dtype) == (True, [-1, 0], True, torch.int32)
    assert int(bounds.diff().max()) <= longest
    found = []
    for first, stop in pairwise(bounds.tolist()):
        shares, _ = shares_of(query[first:stop], key[first:stop], scale)
        of_heads = value[first:stop].repeat_interleave(query.shape[1] // value.shape[1], 1)
        found.append(torch.einsum("hqk,khd->qhd", shares, of_heads))
    return torch.cat(found), query.new_zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


def gradients_by_documents(grad, query, key, value, out, _, bounds, *options):
    scale, groups, found = options[-2], query.shape[1] // key.shape[1], []
    for first, stop in pairwise(bounds.tolist()):
        rows, of_out = slice(first, stop), grad[first:stop]
        shares, keys = shares_of(query[rows], key[rows], scale)
        of_shares = torch.einsum("qhd,khd->hqk", of_out, value[rows].repeat_interleave(groups, 1))
        of_scores = scale * shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True))
        of_keys = torch.einsum("hqk,qhd->khd", of_scores, query[rows]), torch.einsum("hqk,qhd->khd", shares, of_out)
        of_keys = (each.unflatten(1, (-1, groups)).sum(2) for each in of_keys)
        found.append((torch.einsum("hqk,khd->qhd", of_scores, keys), *of_keys))
    return tuple(torch.cat(each) for each in zip(*found, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_of_a_block_is_that_of_its_documents_alone(architecture, way_to_attend):
    """Against transformers' own loss of every document, in fp32, and its gradient with respect to the embeddings."""
    model = way_to_attend(tiny_model(architecture).eval())
    require_documents_apart(model)
    model.get_input_embeddings().weight.requires_grad_()
    generator = torch.Generator().manual_seed(0)
    lengths = [[5, 1, 17, 7], [2, 20, 8]]
    rows = [[torch.randint(3, 97, (n,), generator=generator) for n in of_row] for of_row in lengths]
    batch = batch_documents(
        [torch.stack((torch.cat(row), torch.cat([torch.arange(len(document)) for document in row]))) for row in rows]
    )
    expected = sum(
        model(input_ids=document[None], labels=document[None]).loss * (len(document) - 1)
        for row in rows
        for document in row
        if len(document) > 1
    )
    inputs = seen_within_documents(model, batch)
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
    labels = batch["labels"][:, 1:]
    found = token_loss_sum(hidden[:, :-1], OutputHead.of(model), labels)
    assert int((labels != IGNORED).sum()) == sum(n - 1 for of_row in lengths for n in of_row)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    weight = model.get_input_embeddings().weight
    of_blocks, of_documents = (torch.autograd.grad(loss, weight)[0] for loss in (found, expected))
    torch.testing.assert_close(of_blocks, of_documents, rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_keep_documents_apart_is_refused(monkeypatch):
    model = attend_without_masks(tiny_model("llama"))
    monkeypatch.setattr("lightning_app.model.attention._CAUSAL", "another")
    with refusal("--data.chunking packed"):
        require_documents_apart(model)

"""Special tokens that are spelled in a text stay text."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from datamodules import token_cache
from datamodules.sources import open_source
from tests.caches import LATIN, content_of, fill, own_corpus, train_on, without_checksums
from tests.faults import fault, note


@pytest.fixture(scope="module")
def tokenizer(hub, tmp_path_factory):
    return train_on(hub, tmp_path_factory.mktemp("tokenizer"))


def llama_like():
    """Byte-level with special tokens that were added to the vocabulary, and BOS at the head of a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["some words to learn"] * 9, trainer=trainer)
    backend.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", "<|eot_id|>"]
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    backend.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", backend.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def of_documents(documents, folder):
    (folder / "own.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return open_source("unused/unused", LATIN, "main", [str(folder / "own.jsonl")])


SPELLED = ["a <s> begins", "and </s> ends", "<|endoftext|><|eot_id|>", "plain words"]


@pytest.mark.parametrize("kind", ["own", "llama"])
def test_special_tokens_spelled_in_a_text_stay_text(kind, tokenizer, tmp_path):
    tokenizer = tokenizer if kind == "own" else llama_like()
    cache = fill(None, tokenizer, tmp_path / "cache", source=of_documents(SPELLED, tmp_path))
    special = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    assert special
    assert not np.isin(cache.open_tokens(), special).any()
    parts = np.split(cache.open_tokens(), cache.read_ends()[:-1])
    assert [tokenizer.decode(part.tolist(), clean_up_tokenization_spaces=False) for part in parts] == SPELLED


def as_an_earlier_version(tokenizer, documents, folder, root):
    """Makes the cache that a version made which took spelled tokens for real ones, without checksums."""
    encode, token_cache.encode_documents = token_cache.encode_documents, lambda tokenizer, documents, is_text: (
        tokenizer(documents, add_special_tokens=False)["input_ids"]
    )  # fmt: skip
    try:
        cache = fill(None, tokenizer, root, source=of_documents(documents, folder))
    finally:
        token_cache.encode_documents = encode
    without_checksums(cache.folder)
    return cache


@fault(
    "a token cache of an earlier version, which took special tokens spelled in a text for real ones",
    lost="nothing: its text is fetched again",
)
def test_only_an_earlier_cache_that_took_them_for_real_is_filled_again_and_has_another_id(tmp_path, capsys):
    tokenizer = llama_like()
    plain = as_an_earlier_version(tokenizer, SPELLED[3:], tmp_path, tmp_path / "plain")
    again = fill(None, tokenizer, tmp_path / "plain", source=of_documents(SPELLED[3:], tmp_path))
    assert (content_of(again), again.id) == (content_of(plain), plain.id)
    assert capsys.readouterr().out == ""
    earlier = as_an_earlier_version(tokenizer, SPELLED, tmp_path, tmp_path / "spelled")
    again = fill(None, tokenizer, tmp_path / "spelled", source=of_documents(SPELLED, tmp_path))
    said = capsys.readouterr().out.strip()
    assert "took special tokens spelled in its text for real ones" in said
    note(said)
    assert again.folder == earlier.folder
    assert again.id != earlier.id
    fresh = fill(None, tokenizer, tmp_path / "fresh", source=of_documents(SPELLED, tmp_path))
    assert content_of(again) == content_of(fresh) != content_of(earlier)
    assert fill(None, tokenizer, tmp_path / "spelled", source=of_documents(SPELLED, tmp_path)).id == again.id


@pytest.mark.parametrize("is_spelled", [False, True])
def test_the_papers_text_has_a_cache_of_its_own_only_where_it_is_another(is_spelled, tmp_path):
    documents = [
        f"{text} words to fill it {number} " * 9 for number, text in enumerate(SPELLED if is_spelled else "abcd")
    ]
    corpus = own_corpus("unused/unused", tmp_path, llama_like(), **{LATIN.glotcc: str(tmp_path / "own.jsonl")})
    of_documents(documents, tmp_path)
    paper, packed = (corpus.fill(LATIN, 10**9, chunking, 16) for chunking in ("paper", "packed"))
    assert (paper.id != packed.id) == is_spelled
    special = list(corpus.tokenizer.added_tokens_decoder)
    assert np.isin(paper.open_tokens(), special).any() == is_spelled
    assert not np.isin(packed.open_tokens(), special).any()

"""Text as models read it: special tokens, the paper's chunks and batches, joined sentences, targets and replay."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from datamodules import invented
from datamodules.chunking import PackedBlocks, cut_blocks, usable_tokens
from datamodules.corpus import Corpus
from datamodules.flores import join_blocks, read_flores
from datamodules.glotcc import GlotCCDataModule
from datamodules.paper import PaperChunks, paper_batches
from datamodules.shares import read_replay, read_targets
from datamodules.token_cache import TokenCache, tokenizer_id
from datamodules.tokenizers import start_token
from lightning_app.errors import UserError
from lightning_app.languages import find_language

LATIN, GEORGIAN = find_language("qaa-Latn"), find_language("qag-Geor")
BOS, EOS = 0, 1
TEXTS = [text for code in ("qaa-Latn", "qag-Geor") for text in invented.documents(invented.LANGUAGES[code], 0.04)]


ODD = [
    "", " ", "kort", "x" * 49, "\u0f40" * 49, "\u0f40" * 50, " " * 300 + "\u0f40" * 30, "\n" * 300 + "\u0f40" * 50,
    "\n" * 300 + "\u0f40" * 49 + "\u3000" * 99, "\u3000" * 200 + "a" * 60, " ".join("abcdefgh" * 40), "\u00a0" * 500,
    "ends with a special </s> token " * 9, "<s>" * 45,
]  # fmt: skip


def template(single):
    return processors.TemplateProcessing(single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)])


def byte_level(special=None):
    """As GPT-2; with BOS before it as Llama-3."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    train(backend, trainers.BpeTrainer, initial_alphabet=alphabet)
    if special:
        backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template(special)])
    return backend


def dummy_prefix():
    """As Llama-2: a space before every text, the whole text one word, bytes for what is unknown."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    train(backend, trainers.BpeTrainer, limit_alphabet=60)
    backend.pre_tokenizer = None
    learnt = json.loads(backend.to_str())["model"]
    vocabulary = {**learnt["vocab"], **{f"<0x{byte:02X}>": len(learnt["vocab"]) + byte for byte in range(256)}}
    merges = [tuple(merge) for merge in learnt["merges"]]
    backend.model = models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.post_processor = template("<s> $A")
    return backend


def unigram():
    """As XGLM or Gemma-like: words with a space before them, the first one too, and BOS and EOS."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    train(backend, trainers.UnigramTrainer, unk_token="<unk>")
    backend.post_processor = template("<s> $A </s>")
    return backend


def train(backend, trainer, **keys):
    special = ["<s>", "</s>", "<unk>"]
    alphabet = [" ".join(sorted(set("".join(ODD + TEXTS))))]
    backend.train_from_iterator(
        [*TEXTS[::4], *alphabet], trainer=trainer(vocab_size=600, special_tokens=special, show_progress=False, **keys)
    )


KINDS = {
    "byte-level": byte_level,
    "byte-level with BOS": lambda: byte_level("<s> $A"),
    "dummy prefix": dummy_prefix,
    "unigram": unigram,
}
_MADE = {}


def made(kind):
    if kind not in _MADE:
        fast = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), bos_token="<s>", eos_token="</s>")
        _MADE[kind] = fast
    return _MADE[kind]


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return made(request.param)


def corpus_of(tokenizer, documents, folder):
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    corpus = Corpus("unused/unused", "main", folder / "cache", None, files={LATIN.glotcc: str(file)})
    corpus.tokenizer = tokenizer
    return corpus


def all_of(blocks):
    return [blocks[index].tolist() for index in range(len(blocks))]


def test_bos_is_found_only_where_the_tokenizer_itself_sets_it():
    found = {kind: start_token(made(kind)) for kind in KINDS}
    assert found == {"byte-level": None, "byte-level with BOS": BOS, "dummy prefix": BOS, "unigram": BOS}


# Packed text


def write_cache(folder, lengths, generator):
    tokens = generator.integers(10, 1000, sum(lengths)).astype(np.uint32)
    tokens.tofile(folder / "tokens.bin")
    np.cumsum(lengths).astype(np.int64).tofile(folder / "ends.bin")
    cache = TokenCache(folder, {"tokens": len(tokens), "documents": len(lengths)})
    return cache, np.split(tokens.astype(np.int64), np.cumsum(lengths)[:-1])


@pytest.mark.parametrize("seed", range(40))
def test_packed_blocks_are_the_documents_between_their_special_tokens(seed, tmp_path):
    """Against a naive concatenation: empty documents, long ones, blocks of any size, with and without specials."""
    generator = np.random.default_rng(seed)
    longest = int(generator.choice([1, 3, 30, 300]))
    lengths = [0, *generator.integers(0, longest + 1, int(generator.integers(1, 40))).tolist(), 1]
    cache, documents = write_cache(tmp_path, lengths, generator)
    for start, separator in ((None, None), (None, 5), (4, None), (4, 5)):
        around = [[] if token is None else [token] for token in (start, separator)]
        stream = [token for document in documents for token in [*around[0], *document.tolist(), *around[1]]]
        for size in {1, 2, 3, int(generator.integers(1, 80)), len(stream)}:
            budget = int(generator.choice([10**9, max(1, len(stream) // 2)]))
            blocks = PackedBlocks(cache, size, budget, separator, start)
            count = min(budget, len(stream)) // size
            assert blocks.available == len(stream)
            assert blocks.tokens == count * size
            assert all_of(blocks) == [stream[index * size : (index + 1) * size] for index in range(count)]
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
    with pytest.raises(UserError, match="less than one sequence of 1000000"):
        corpus.sample(LATIN, 1, 10**6)


# The paper's chunks


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


# Sentences


def sentences_of(hub, language=LATIN):
    return read_flores(str(hub), language, "dev", hub)


def naive_runs(sentences, tokenizer, room):
    """Greedy, one sentence more at a time."""
    runs = []
    for sentence in sentences:
        longer = [*runs[-1], sentence] if runs else [sentence]
        first = len(tokenizer(longer[0], add_special_tokens=False)["input_ids"])
        fits = len(tokenizer(" ".join(longer), add_special_tokens=False)["input_ids"]) <= room(first)
        if runs and fits:
            runs[-1] = longer
        else:
            runs.append([sentence])
    return runs


@pytest.mark.parametrize("size", [2, 3, 24, 64, 200, 4096])
@pytest.mark.parametrize("language", [LATIN, GEORGIAN])
def test_validation_blocks_are_the_tokens_of_the_joined_text(hub, tokenizer, size, language):
    sentences = sentences_of(hub, language)
    blocks = join_blocks(sentences, tokenizer, size)
    room, begin = size - 1, start_token(tokenizer) if start_token(tokenizer) is not None else EOS
    expected = []
    for run in naive_runs(sentences, tokenizer, lambda first: -(-first // room) * room):
        ids = tokenizer(" ".join(run), add_special_tokens=False)["input_ids"]
        expected += [[begin, *ids[start : start + room]] for start in range(0, len(ids), room)]
    assert [block.input_ids.tolist() for block in blocks] == expected
    assert all(block.input_ids.dtype == torch.int64 for block in blocks)
    spaces = len(naive_runs(sentences, tokenizer, lambda first: -(-first // room) * room)) - 1
    assert sum(block.text_bytes for block in blocks) == len(" ".join(sentences).encode()) - spaces
    if size == 200:  # no sentence is split
        for block in blocks:
            assert len(tokenizer.decode(block.input_ids[1:]).encode()) == block.text_bytes


@pytest.mark.parametrize("size", [2, 24, 64, 4096])
def test_byte_level_blocks_are_those_of_the_sentences_one_by_one(hub, size):
    """What such a tokenizer makes of a text does not depend on what is joined to it after a space."""
    tokenizer, room = made("byte-level"), size - 1
    expected, ids, text_bytes = [], [], 0
    for index, sentence in enumerate(sentences_of(hub, GEORGIAN)):
        piece = f" {sentence}" if index else sentence
        if ids and len(ids) + len(tokenizer(piece)["input_ids"]) > room:
            expected.append(([EOS, *ids], text_bytes))
            piece, ids, text_bytes = sentence, [], 0
        ids, text_bytes = ids + tokenizer(piece)["input_ids"], text_bytes + len(piece.encode())
        while len(ids) > room:
            expected.append(([EOS, *ids[:room]], text_bytes))
            ids, text_bytes = ids[room:], 0
    expected.append(([EOS, *ids], text_bytes))
    blocks = join_blocks(sentences_of(hub, GEORGIAN), tokenizer, size)
    assert [(block.input_ids.tolist(), block.text_bytes) for block in blocks] == expected


def test_joining_tokenises_the_text_a_few_times_not_once_a_sentence(tokenizer):
    sentences = [text[:100].replace("\n", " ") for text in TEXTS] * 3
    counted = []

    class Counting:
        eos_token_id, bos_token_id = EOS, tokenizer.bos_token_id

        def __call__(self, text, **keys):
            counted.append(len(text))
            return tokenizer(text, **keys)

    join_blocks(sentences, Counting(), 4096)
    assert sum(counted) < 8 * len(" ".join(sentences))


def test_a_block_without_room_for_text_is_refused(tokenizer):
    with pytest.raises(UserError, match="block_size is 1; expected 2 or more"):
        join_blocks(["a sentence"], tokenizer, 1)


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


# Targets and replay


@pytest.fixture
def data(hub, tmp_path):
    def make(language="qaa-Latn", tokenizer="byte-level", rank=0, world=1, batches=0, **keys):
        defaults = {"watch": ["qac-Latn"], "token_budget": 20_000, "block_size": 64, "seed": 3}
        module = GlotCCDataModule(
            language, source=str(hub), flores=str(hub), cache_dir=str(tmp_path / "cache"), **{**defaults, **keys}
        )
        module.corpus.tokenizer = made(tokenizer)
        module.trainer = SimpleNamespace(
            global_rank=rank, world_size=world, accumulate_grad_batches=1, max_steps=-1,
            fit_loop=SimpleNamespace(batch_idx=batches - 1), global_step=batches,
        )  # fmt: skip
        module.setup("fit")
        return module

    return make


def drawn_by_language(module):
    """Sequences of the order by language, in the order of `shares`."""
    dataset = module.train_dataloader().dataset
    positions = [index for batch in module.train_dataloader().batch_sampler for index in batch]
    which = np.searchsorted(dataset.cumulative_sizes, positions, side="right")
    return np.bincount(which, minlength=len(module.shares)).tolist(), positions


def test_replay_takes_its_share_of_the_budget(data):
    module = data(replay={"qab-Latn": 0.2, "qaf-Grek": 0.1})
    counts, _ = drawn_by_language(module)
    assert [share.language.short for share in module.shares] == ["qaa-Latn", "qab-Latn", "qaf-Grek"]
    assert [share.share for share in module.shares] == pytest.approx([0.7, 0.2, 0.1])
    assert counts == pytest.approx([218, 62, 31], abs=1)
    assert [share.language.short for share in module.targets] == ["qaa-Latn"]
    assert [language.short for language in module.validation_languages] == ["qaa-Latn", "qac-Latn"]


def test_replay_shrinks_with_the_targets_text_and_repeats_its_own(data, tmp_path, capsys):
    (tmp_path / "few.txt").write_text("\n\n".join(TEXTS[:40]), encoding="utf-8")
    few = {"qaa-Latn": str(tmp_path / "few.txt")}
    module = data(token_budget=10**6, files=few, replay={"qab-Latn": 0.25})
    counts, _ = drawn_by_language(module)
    assert counts[1] == pytest.approx(counts[0] / 3, abs=1)
    assert "replay of qab-Latn shrinks from 250k to" in capsys.readouterr().out
    module = data("qab-Latn", files=few, replay={"qaa-Latn": 0.5})
    counts, positions = drawn_by_language(module)
    assert counts[0] == pytest.approx(counts[1], abs=1)
    repeats = np.bincount([p for p in positions if p >= len(module.train_dataloader().dataset.datasets[0])])
    assert repeats.max() > 1
    assert "it is passed" in capsys.readouterr().out


@pytest.mark.parametrize("chunking", ["packed", "paper"])
def test_a_run_with_replay_resumes_exactly_on_any_number_of_processes(data, chunking):
    keys = {"replay": {"qab-Latn": 0.3}, "chunking": chunking, "batch_size": 2}
    state, done, consumed = None, 0, []
    for world, batches in ((1, 6), (2, 5), (1, 8)):
        ranks = []
        for rank in range(world):
            module = data(rank=rank, world=world, batches=done + batches, **keys)
            if state is not None:
                module.load_state_dict(json.loads(json.dumps(state)))
            sampler = iter(module.train_dataloader().batch_sampler)
            ranks.append([next(sampler) for _ in range(batches)])
        for step in zip(*ranks, strict=True):
            consumed += [index for row in zip(*step, strict=True) for index in row]
        state, done = module.state_dict(), done + batches
    _, whole = drawn_by_language(data(**keys))
    assert consumed == whole[: len(consumed)]
    other = data(**{**keys, "replay": {"qab-Latn": 0.2}})
    with pytest.raises(UserError, match="other text"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("language", "replay", "message"),
    [
        ("cy", {"en": 0.0}, "above 0"),
        ("cy", {"en": 1.0}, "above 0"),
        ("cy", {"en": -0.1}, "above 0"),
        ("cy", {"en": float("nan")}, "above 0"),
        ("cy", {"en": 0.5, "fr": 0.5}, "less than 1"),
        ("cy,en", {"English": 0.1}, "English .* is a target"),
        ("cy", {"en": 0.1, "English": 0.1}, "named twice"),
        ("cy", {"klingon": 0.1}, "unknown language"),
        (None, {"en": 0.1}, "name a target"),
    ],
)
def test_replay_that_makes_no_sense_is_refused_in_one_line(language, replay, message):
    with pytest.raises(UserError, match=message) as error:
        read_replay(replay, read_targets(language, None), is_mixture=False)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="into the mixture"):
        read_replay(replay, read_targets(None, {"de": 1}), is_mixture=True)


def test_several_targets_are_trained_and_validated_by_share(data):
    module = data("qaa-Latn:3,qag-Geor:1", replay={"qab-Latn": 0.2}, watch=["qag-Geor", "qab-Latn"])
    assert [(share.language.short, share.share) for share in module.targets] == [("qaa-Latn", 0.75), ("qag-Geor", 0.25)]
    assert [share.share for share in module.shares] == pytest.approx([0.6, 0.2, 0.2])
    assert module.target == LATIN
    assert [language.short for language in module.validation_languages] == ["qaa-Latn", "qag-Geor", "qab-Latn"]
    counts, _ = drawn_by_language(module)
    assert counts == pytest.approx([187, 62, 62], abs=1)
    assert set(module.caches) == {"qaa-Latn", "qag-Geor", "qab-Latn"}
    (prompts,) = [list(module.predict_dataloader())]
    first = read_flores(module.flores, LATIN, "devtest", module.corpus.cache_dir)[0]
    assert first.startswith(prompts[0][0])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_papers_batches_follow_the_validation_loaders_and_are_shared_whole(data, world):
    ranks = [data("qaa-Latn,qag-Geor", "dummy prefix", rank, world, paper_loss=True) for rank in range(world)]
    assert ranks[0].paper_languages == [LATIN, GEORGIAN]
    loaders = [module.val_dataloader() for module in ranks]
    assert {len(each) for each in loaders} == {3 + 2}
    for index, language in enumerate(ranks[0].paper_languages):
        sentences = read_flores(ranks[0].flores, language, "dev", ranks[0].corpus.cache_dir, "keep")
        expected = paper_batches(sentences, made("dummy prefix"), 64, 2)
        for rank, each in enumerate(loaders):
            found = list(each[3 + index])
            assert [b["input_ids"].tolist() for b in found] == [b["input_ids"].tolist() for b in expected[rank::world]]
    assert data().paper_languages == []
    assert len(data().val_dataloader()) == 2


def test_validation_text_has_an_identity(data, tmp_path):
    one = data().validation_id()
    assert set(one) == {"qaa-Latn", "qac-Latn"}
    assert one == data(token_budget=5000, seed=9, batch_size=1).validation_id()
    assert not set(one.values()) & set(data(block_size=50).validation_id().values())
    assert one["qaa-Latn"] != data(tokenizer="byte-level with BOS").validation_id()["qaa-Latn"]


def test_the_papers_dev_set_keeps_what_devtest_holds(tmp_path):
    for split, lines in (("dev", ["erste zeile", "zweite zeile"]), ("devtest", ["zweite zeile", "dritte zeile"])):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"qaa_Latn.{split}").write_text("\n".join(lines) + "\n")
    assert read_flores(str(tmp_path), LATIN, "dev", tmp_path, "keep") == ["erste zeile", "zweite zeile"]
    found = {}
    for overlap in ("drop", "keep"):
        module = GlotCCDataModule(
            "qaa-Latn", flores=str(tmp_path), flores_overlap=overlap, watch=[], cache_dir=str(tmp_path)
        )
        module.corpus.tokenizer = made("byte-level")
        module.setup("validate")
        found[overlap] = [block.text_bytes for block in module.evaluation["qaa-Latn"]]
    assert found == {"drop": [len("erste zeile")], "keep": [len("erste zeile zweite zeile")]}

"""Tokenizers of the kinds that models have, trained on invented text."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from datamodules import invented
from datamodules.corpus import Corpus
from datamodules.flores import read_flores
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


def corpus_of(tokenizer, documents, folder):
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    corpus = Corpus("unused/unused", "main", folder / "cache", None, files={LATIN.glotcc: str(file)})
    corpus.tokenizer = tokenizer
    return corpus


def all_of(blocks):
    return [blocks[index].tolist() for index in range(len(blocks))]


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

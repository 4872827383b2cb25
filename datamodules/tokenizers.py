"""What a tokenizer begins a text with, and a byte-level BPE trained on the run's own text for a base from scratch."""

from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.sources import TextSource
from lightning_app.errors import UserError
from lightning_app.files import digest
from lightning_app.model.base import load_tokenizer
from lightning_app.progress import ByteProgress, held
from lightning_app.run import is_first_process

_LARGEST_VOCABULARY = 2_000_000
END_OF_TEXT = "<|endoftext|>"
_SAMPLE_BYTES = 20_000_000


def start_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns BOS where the tokenizer itself puts it at the head of a text; None where it does not, or has none."""
    bos = tokenizer.bos_token_id
    bare, whole = (tokenizer("a", add_special_tokens=adds, verbose=False)["input_ids"] for adds in (False, True))
    return bos if bos is not None and whole[:1] == [bos] and bare[:1] != [bos] else None


def require_vocabulary(size: int | None) -> None:
    """Raises `UserError` where a tokenizer is to be trained, but cannot be to that size of its vocabulary."""
    if size is not None and not 257 <= size <= _LARGEST_VOCABULARY:
        raise UserError(
            f"--data.train_tokenizer is {size}; expected 257 (256 bytes and end of text) to {_LARGEST_VOCABULARY}"
        )


def train_tokenizer(
    sources: list[tuple[TextSource, float]], vocab_size: int, cache_dir: Path
) -> PreTrainedTokenizerBase:
    """Trains a byte-level BPE on about 20 MB of the sources' text, each by its share, or loads it where it was.

    Args:
        sources: Texts and their shares.
        vocab_size: Entries, with the 256 bytes and the end-of-text token among them.
        cache_dir: Keeps the tokenizer under ``tokenizers/``.
    """
    require_vocabulary(vocab_size)
    key = digest([[source.identity(), share] for source, share in sources], vocab_size)
    folder = cache_dir / "tokenizers" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with held(FileLock(folder.with_suffix(".lock")), "trains the tokenizer", is_first_process()):
        if not (folder / "tokenizer.json").exists():
            backend = Tokenizer(models.BPE())
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=[END_OF_TEXT],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
            backend.train_from_iterator(_sample(sources), trainer=trainer)
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=backend, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT
            )
            temporary = folder.with_suffix(".partial")
            tokenizer.save_pretrained(temporary)
            temporary.rename(folder)
    return load_tokenizer(str(folder))


def _sample(sources: list[tuple[TextSource, float]]) -> Iterator[str]:
    total = sum(share for _, share in sources)
    with ByteProgress("reading text for a tokenizer", _SAMPLE_BYTES, is_brief=True) as progress:
        for source, share in sources:
            left = _SAMPLE_BYTES * share / total
            batches = source.batches(None)
            for documents, _ in batches:
                size = 0
                for document in documents:
                    size += len(document.encode())
                    yield document
                progress.advance(size)
                left -= size
                if left <= 0:
                    break
            getattr(batches, "close", lambda: None)()

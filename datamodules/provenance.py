"""Where documents of a token cache come from: their numbers, how they begin, and their places in a source's files."""

from collections.abc import Collection, Iterator

import numpy as np
from transformers import PreTrainedTokenizerBase

from datamodules.encoding import encode_documents
from datamodules.sources import FileSource, TextSource
from datamodules.text_files import READERS
from datamodules.token_cache import REAL, TokenCache
from lightning_app.errors import UserError
from lightning_app.files import JSON

_BEGINS_CHARACTERS = 80
_TRIES = 1000


def trace_documents(
    source: TextSource, cache: TokenCache, tokenizer: PreTrainedTokenizerBase, numbers: Collection[int]
) -> dict[int, JSON]:
    """Returns what is known of documents by their number in a cache, as plain data.

    Their file, and the row or byte in it, are found by reading the source again: for local files, as long as they are
    what they were. The hub's are known by their number in the order of the data set.
    """
    ends, tokens = cache.read_ends(), cache.open_tokens()
    key = cache.manifest["key"]
    wanted, traced = {}, {}
    for number in sorted(numbers):
        start = int(ends[number - 1]) if number else 0
        wanted[number] = np.asarray(tokens[start : ends[number]]).tolist()
        begins = str(tokenizer.decode(wanted[number][:_BEGINS_CHARACTERS]))[:_BEGINS_CHARACTERS]
        own = {"document": number, "tokens": len(wanted[number]), "begins": begins, "data_set": key["data_set"]}
        traced[number] = {**own, "revision": key.get("revision")}
    if isinstance(source, FileSource):
        for number, place in _places(source, tokenizer, wanted, is_text=not REAL.items() <= key.items()):
            traced[number] |= place
    return traced


def _places(
    source: FileSource, tokenizer: PreTrainedTokenizerBase, wanted: dict[int, list[int]], is_text: bool
) -> Iterator[tuple[int, JSON]]:
    """Yields documents with their file and place.

    A document without a token is in no cache: one that is stands where its number says in the source, or further on.
    """
    waiting = sorted(wanted)
    seen = -1
    try:
        for path in source.files:
            unit, before = ("row" if path.suffix == ".parquet" else "byte"), 0
            for documents, after in READERS[path.suffix](path, 0, 1):
                for document in documents:
                    seen += 1
                    if not waiting or seen > waiting[0] + _TRIES:
                        return
                    if seen < waiting[0]:
                        continue
                    if encode_documents(tokenizer, [document], is_text)[0] == wanted[waiting[0]]:
                        yield waiting.pop(0), {"file": str(path), unit: before}
                before = after
    except UserError:
        return  # a file that cannot be read any more says nothing

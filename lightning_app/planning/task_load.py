"""What of a task runs through a model: counted on its data where that is at hand, else by the data set's known size.

``task_sizes.tsv`` beside this file has the known sizes: items of a task, sequences of an item that run through the
model, characters of a sequence, in English or the target language, and tokens that an answer has at most.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lm_eval.api.instance import Instance
from transformers import PreTrainedTokenizerBase

from datamodules.flores import is_at_hand, read_flores
from lightning_app.errors import UserError
from lightning_app.evaluation.loading import OWN, TaskData, load_tasks
from lightning_app.evaluation.requests import requests_of
from lightning_app.evaluation.suites import Task
from lightning_app.hub import offline
from lightning_app.languages import Language, find_language

_LOOKED_AT = 200  # items of a task, spread over all of them
_ANSWER_TOKENS = 256  # of the harness, where a task does not say
_TOKENS_PER_CHARACTER = 0.25  # of English, assumed where there is no FLORES to count on; of other languages twice that
_ENGLISH = find_language("en")


@dataclass(frozen=True)
class Load:
    """What of a task runs through a model.

    Attributes:
        items: How many the task has.
        lengths: Tokens of the sequences of those items that were looked at, answers left out.
        share: Of the items that were looked at.
        answer_tokens: That an answer has at most; 0 where none is generated.
        is_from_data: Whether it was counted on the data.
    """

    items: int
    lengths: Sequence[int]
    share: float
    answer_tokens: int
    is_from_data: bool

    @property
    def sequences(self) -> int:
        """How many run through the model."""
        return round(len(self.lengths) / self.share)

    @property
    def tokens(self) -> int:
        """In all of them."""
        return round(sum(self.lengths) / self.share)


def find_load(task: Task, tokenizer: PreTrainedTokenizerBase, data: TaskData, context: int | None) -> Load:
    """Returns what of a task runs through a model. Downloads nothing.

    Args:
        task: The task.
        tokenizer: The model's.
        data: Where its items are.
        context: Tokens that the model reads at once; a longer sequence loses its beginning.

    Raises:
        UserError: The task would be left out, or neither its data nor its size is known here.
    """
    if task.why_not:
        raise UserError(task.why_not)
    try:
        with offline():
            tasks = load_tasks(task.harness, task.language, data)
    except UserError as error:
        known = _by_known_size(task, tokenizer, data)
        if known is None:
            raise error
        return replace(known, lengths=_cut(known.lengths, context))
    items, lengths, looked_at, answer_tokens = 0, list[int](), 0, 0
    for loaded in tasks:
        count = len(loaded.eval_docs)
        numbers = range(0, count, -(-count // _LOOKED_AT))
        requests = requests_of(loaded, numbers=numbers)
        items, looked_at = items + count, looked_at + len(numbers)
        lengths += _lengths(requests, tokenizer)
        answer_tokens = max([answer_tokens, *map(_answer_tokens, requests)])
    return Load(items, _cut(lengths, context), looked_at / items, answer_tokens, is_from_data=True)


def _cut(lengths: Sequence[int], context: int | None) -> list[int]:
    return [length if context is None else min(length, context) for length in lengths]


def _answer_tokens(request: Instance) -> int:
    is_generated = request.request_type == "generate_until"
    return int(request.args[1].get("max_gen_toks", _ANSWER_TOKENS)) if is_generated else 0


def _lengths(requests: Sequence[Instance], tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    """Yields the tokens of each sequence that runs through the model; the harness runs equal ones once."""
    seen: set[tuple[int, ...]] = set()
    for request in requests:
        if request.request_type == "generate_until":
            yield len(tokenizer(request.args[0], verbose=False)["input_ids"])
            continue
        before = tuple(tokenizer("".join(request.args), verbose=False)["input_ids"][:-1])  # the last is only predicted
        if before not in seen:
            seen.add(before)
            yield max(1, len(before))


def _by_known_size(task: Task, tokenizer: PreTrainedTokenizerBase, data: TaskData) -> Load | None:
    with Path(__file__).with_name("task_sizes.tsv").open(encoding="utf-8", newline="") as file:
        rows = {row["task"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    name = task.harness.removeprefix(OWN)
    size = rows.get(name) or rows.get("_".join(name.split("_")[:-2])) or rows.get(name.split("_")[0])
    if size is None:
        return None
    language = task.language if size["language"] == "target" and task.language is not None else _ENGLISH
    tokens = max(1, round(float(size["characters"]) * _tokens_per_character(language, tokenizer, data)))
    items = int(size["items"])
    return Load(items, [tokens] * int(size["sequences"]), 1 / items, int(size["answer_tokens"]), is_from_data=False)


def _tokens_per_character(language: Language, tokenizer: PreTrainedTokenizerBase, data: TaskData) -> float:
    """Returns the tokens per character of FLORES in a language, where that is at hand."""
    try:
        with offline():
            is_there = is_at_hand(data.flores, language, data.cache_dir)
            texts = read_flores(data.flores, language, "devtest", data.cache_dir) if is_there else []
    except UserError:
        texts = []
    if not texts:
        return _TOKENS_PER_CHARACTER * (1 if language == _ENGLISH else 2)
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return sum(map(len, ids)) / sum(map(len, texts))

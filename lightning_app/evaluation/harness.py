"""lm-evaluation-harness on a model that is in memory: batches as large as memory allows, progress, items one by one."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import lm_eval.api.task
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers import StoppingCriteriaList

from lightning_app import __version__
from lightning_app.adapted import AdaptedModel
from lightning_app.errors import UserError
from lightning_app.evaluation.batches import fitting, free_bytes
from lightning_app.evaluation.figures import read_answer, read_figures
from lightning_app.evaluation.requests import FEWSHOT_SEED
from lightning_app.evaluation.scores import Scores
from lightning_app.evaluation.translation import sign_translation
from lightning_app.files import JSON
from lightning_app.model.generation import StopsAt, generating
from lightning_app.progress import ItemProgress

SHARE_OF_FREE_MEMORY = 0.7  # the rest is for what the allocator keeps and the estimate leaves out
_SMALLEST_SHARE = 0.01
_MADE_BY = ("lm_eval", "sacrebleu", "torch", "transformers")


class UnfitError(UserError):
    """A task that this model cannot run: its requests do not fit what the model reads, or the device."""


class ModelInMemory(HFLM):
    """The harness's transformers model, around one that is loaded already.

    Batches are as large as the free memory allows for the longest sequence in them, by arithmetic instead of the
    harness's trials, which swap or never end on a CPU. Where that was too much on a GPU, `smaller_batches` halves them.

    Args:
        adapted: The model, on its device.
        identity: Of its weights.

    Attributes:
        title: What the bar says.
        cut_short: How many requests lost their beginning since this was last set to nought.
        requests: How many there were.
    """

    def __init__(self, adapted: AdaptedModel, identity: str) -> None:
        super().__init__(pretrained=adapted.model, tokenizer=adapted.tokenizer, backend="causal", batch_size="auto")
        self.identity, self.title = identity, ""
        self.cut_short = self.requests = 0
        self._share = SHARE_OF_FREE_MEMORY
        self._answered = _Answered()
        self.cache_hook = self._answered

    def smaller_batches(self) -> None:
        """Halves the batches from now on.

        Raises:
            UnfitError: They are as small as they get.
        """
        self._share /= 2
        if self._share < _SMALLEST_SHARE:
            raise UnfitError(f"{self.device} has no memory left for a sequence beside the model")

    def sequences_that_fit(self, tokens: int, is_generated: bool = False) -> int:
        """Returns how many sequences of ``tokens``, prompt and continuation, run at once."""
        return fitting(self.model, tokens, is_generated, self._share * free_bytes(self.device))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns the log-likelihood of each continuation, and whether it is what greedy decoding gives."""
        with self._bar(requests):
            return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each text, in windows of what the model reads at once."""
        longest = max((1 + len(self.tok_encode(request.args[0])) for request in requests), default=1)
        with self._bar(requests), self._batches_of(self.sequences_that_fit(min(longest, self.max_length))):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns what the model says after each prompt; the longest first, in batches of their own size."""
        prompts = [len(self.tok_encode(request.args[0])) for request in requests]
        new = [int(request.args[1].get("max_gen_toks", self.max_gen_toks)) for request in requests]
        if max(new) >= self.max_length:
            raise UnfitError(
                f"an answer has up to {max(new)} tokens, and the model reads {self.max_length} at once, prompt included"
            )
        self.requests += len(requests)
        self.cut_short += sum(p > self.max_length - n for p, n in zip(prompts, new, strict=True))
        left, answers = sorted(range(len(requests)), key=lambda number: -prompts[number]), [""] * len(requests)
        with self._bar(requests):
            while left:
                tokens = min(self.max_length, prompts[left[0]] + max(new[number] for number in left))
                count = self.sequences_that_fit(tokens, is_generated=True)
                batch, left = left[:count], left[count:]
                with self._batches_of(count):
                    said = super().generate_until([requests[number] for number in batch], disable_tqdm=True)
                for number, answer in zip(batch, said, strict=True):
                    answers[number] = answer
        return answers

    def tok_batch_encode(self, *args: object, **options: object) -> tuple[Tensor, Tensor]:
        """Returns tokens (B, T) and mask of a batch, each prompt padded with its own first token.

        A penalty on repeated tokens counts padding too: another token would be punished in the shorter prompts.
        """
        ids_BT, mask_BT = super().tok_batch_encode(*args, **options)
        first_B1 = ids_BT.gather(1, mask_BT.argmax(dim=1, keepdim=True))
        return torch.where(mask_BT.bool(), ids_BT, first_B1), mask_BT

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: Any = None
    ) -> Any:
        lengths = [(len(context), len(continuation)) for _, context, continuation in requests]
        longest, shortest = (choose(continuation for _, continuation in lengths) for choose in (max, min))
        if longest > self.max_length:
            raise UnfitError(f"an answer has {longest} tokens, and the model reads {self.max_length} at once")
        if not shortest:
            raise UnfitError("an answer is empty, which no likelihood is of")
        self.requests += len(requests)
        self.cut_short += sum(context + continuation > self.max_length + 1 for context, continuation in lengths)
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _model_call(self, *args: object, **options: object) -> Tensor:
        self._answered.show()  # of the batch before
        return super()._model_call(*args, **options)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: object) -> Tensor:
        """Generates as the harness does, which decodes every row anew for each of the stops: here once for all."""
        self._answered.show()
        if not options.get("do_sample") and not options.get("temperature"):
            options = {name: value for name, value in options.items() if name != "temperature"} | {"do_sample": False}
        return generating(self.model)(
            input_ids=context,
            max_length=max_length,
            stopping_criteria=StoppingCriteriaList([StopsAt(self.tokenizer, stop, context.shape[1])]),
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            **options,
        )

    def _batch_scheduler(self, pos: int, n_reordered_requests: Sequence[tuple[object, list[int], list[int]]]) -> int:
        _, context, continuation = n_reordered_requests[pos]  # sorted, the longest first
        return self.sequences_that_fit(min(len(context) + len(continuation), self.max_length))

    @contextlib.contextmanager
    def _bar(self, requests: list[Instance]) -> Iterator[None]:
        with ItemProgress(self.title, len(requests)) as progress:
            self._answered.progress = progress
            try:
                yield
            finally:
                self._answered.progress = None

    @contextlib.contextmanager
    def _batches_of(self, count: int) -> Iterator[None]:
        self.batch_size_per_gpu = count
        try:
            yield
        finally:
            self.batch_size_per_gpu = "auto"  # type: ignore[assignment]


class _Answered(CacheHook):
    """Stands where the harness's cache of answers would, and counts them for a bar."""

    def __init__(self) -> None:
        super().__init__(None)
        self.progress: ItemProgress | None = None
        self._waiting = 0

    def add_partial(self, attr: str, req: object, res: object) -> None:
        """Counts an answer."""
        self._waiting += 1

    def show(self) -> None:
        """Moves the bar on by what was answered since the last time."""
        if self.progress is not None and self._waiting:
            self.progress.advance(self._waiting)
        self._waiting = 0


def run_task(model: ModelInMemory, task: ConfigurableTask, asked: str, main: str | None, limit: int | None) -> Scores:
    """Returns what a model scores in a task of the harness.

    Args:
        model: The model.
        task: As `load_tasks` gives it.
        asked: Its digest, see `task_digest`.
        main: The metric to show; the task's first where None or not to be had.
        limit: Only so many items.

    Raises:
        UnfitError: The model cannot run it.
    """
    started = time.monotonic()
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    while True:
        model.cut_short = model.requests = 0
        try:
            found = _evaluate(model, task, limit)
            break
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            model.smaller_batches()
    samples, metrics = read_figures(found, task.task_name)
    if not metrics:
        raise UnfitError(f"task {task.task_name} gives no figure; expected a metric_list in its file")
    scores = Scores(
        model=model.identity,
        asked=asked,
        main=main if main in metrics else next(iter(metrics)),
        metrics=metrics,
        answers=[read_answer(sample) for sample in samples],
        expected=[str(sample["target"]) for sample in samples],
        seconds=time.monotonic() - started,
        cut_short=model.cut_short,
        requests=model.requests,
        made_by={"neuroglot": __version__, **{name: metadata.version(name) for name in _MADE_BY}},
    )
    return sign_translation(scores)


def _evaluate(model: ModelInMemory, task: ConfigurableTask, limit: int | None) -> JSON:
    # Its own bars would stand between ours.
    lm_eval.api.task.tqdm = partial(tqdm, disable=True)
    loaded: Any = {"tasks": {task.task_name: task}, "groups": {}, "group_map": {}}
    # Without its bootstrap, which takes minutes for a corpus's figures: here they are compared in pairs.
    found = evaluate(model, loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    if found is None:
        raise RuntimeError("the harness gave no results")
    return dict(found)

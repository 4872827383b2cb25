"""What a task of the harness asks of a model, word for word, without a model."""

from collections.abc import Sequence
from functools import partial

import lm_eval.api.task
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from tqdm import tqdm

FEWSHOT_SEED = 1234  # of the harness's own command


def requests_of(
    task: ConfigurableTask, limit: int | None = None, numbers: Sequence[int] | None = None
) -> list[Instance]:
    """Returns the requests of a task's items, those of an item one after another.

    Args:
        task: As `load_tasks` gives it.
        limit: Only so many items.
        numbers: Only these items.
    """
    lm_eval.api.task.tqdm = partial(tqdm, disable=True)  # its own bars would stand between ours
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(limit=limit, samples=None if numbers is None else list(numbers))
    return list(task.instances)

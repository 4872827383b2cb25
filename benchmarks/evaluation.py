"""What `evaluate` adds to lm-evaluation-harness on the same tasks, model and items."""

import contextlib
import io
import logging
import shutil
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from benchmarks.measure import Result, interleave
from benchmarks.subjects import build_model
from datamodules.invented import write_hub
from datamodules.sources import open_source
from datamodules.tokenizers import train_tokenizer
from lightning_app.adapted import AdaptedModel
from lightning_app.evaluation.contestants import BASE, Contestant
from lightning_app.evaluation.evaluation import evaluate
from lightning_app.evaluation.loading import OWN, TASKS, TaskData
from lightning_app.evaluation.suites import choose_tasks
from lightning_app.languages import find_language
from lightning_app.model.base import identity_of

_LANGUAGE = find_language("qaa-Latn")
_TASKS = {"likelihood": (("bits_per_byte", "minimal_pairs"), 96), "generation": (("paper_flores_from_en",), 16)}
_HARNESS_BATCH = 64  # the most that the harness's own search takes


def evaluation(device: torch.device, dtype: torch.dtype, rounds: int) -> list[Result]:
    """Tasks on invented FLORES: by the harness's own call with its model class, and by ours from data to table."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_hub(root, megabytes={"qaa-Latn": 1.0}, dev=1, devtest=96)
        flores = root / "openlanguagedata/flores_plus/devtest"
        shutil.copy(flores / "qac_Latn.parquet", flores / "eng_Latn.parquet")
        tokenizer = train_tokenizer([(open_source(str(root), _LANGUAGE, "main"), 1.0)], 4096, root)
        tokenizer.save_pretrained(root / "tokenizer")
        model = build_model("3m", device, dtype).eval()
        adapted = AdaptedModel(model, identity_of(model, "3m"), None, str(root / "tokenizer"))
        results = []
        for kind, (names, limit) in _TASKS.items():
            variants = {
                "harness": _harness(adapted, names, limit, root),
                "evaluate": _ours(adapted, names, limit, root),
            }
            results += interleave(f"evaluation {kind}", variants, "harness", rounds, device)
    return results


def _harness(adapted: AdaptedModel, names: tuple[str, ...], limit: int, root: Path) -> Callable[[], object]:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    data = {"language": _LANGUAGE.glotcc, "flores": str(root), "cache_dir": str(root)}

    def call() -> object:
        manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=data)
        model = HFLM(pretrained=adapted.model, tokenizer=adapted.tokenizer, batch_size=_HARNESS_BATCH)
        tasks: Any = [OWN + name for name in names]
        with contextlib.redirect_stderr(io.StringIO()):  # its bars
            return simple_evaluate(model, tasks=tasks, limit=limit, task_manager=manager)

    return call


def _ours(adapted: AdaptedModel, names: tuple[str, ...], limit: int, root: Path) -> Callable[[], object]:
    tasks, turn = choose_tasks(names, [_LANGUAGE]), count()
    data = TaskData(None, str(root), root)

    def call() -> object:
        contestant = Contestant(BASE, lambda: adapted, root / f"scores{next(turn)}", adapted.base.fingerprint)
        return evaluate(tasks, [contestant], data, limit, lambda line: None)

    return call

"""Samples before and after training, and the page that tells of a run once it is done.

They are two: samples need the model, so they are taken before a run is marked complete; the page says whether it is,
so it is made after that, and a run that was killed in between is given it by the next start.
"""

import json

import torch
from lightning.pytorch import Callback

from datamodules.prompts import read_prompts
from lightning_app.errors import UserError
from lightning_app.files import JSON, write_text
from lightning_app.model.generation import continue_text
from lightning_app.model.shards import is_sharded
from lightning_app.reports.run_page import make_run_page
from lightning_app.run import RunFolder
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer

_TOKENS = 48


class Samples(Callback):
    """Lets the model continue sentences before and after training: on all processes where each holds a part of it.

    Args:
        folder: Of the run.
        samples: How many sentences of FLORES devtest are continued.
    """

    def __init__(self, folder: RunFolder, samples: int) -> None:
        self._folder, self._samples = folder, samples
        self._before: list[list[str]] = []

    def state_dict(self) -> JSON:
        """Returns what the base has written."""
        return {"before": self._before}

    def load_state_dict(self, state_dict: JSON) -> None:
        """Takes it over."""
        self._before = state_dict["before"]

    def on_train_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Takes the samples of the base."""
        data, target = trainer.datamodule, trainer.datamodule.target
        if not _generates(trainer, pl_module) or target is None or trainer.global_step or not self._samples:
            return
        prompts = read_prompts(None, target, data.flores, data.corpus.cache_dir, self._samples)
        self._before = [[prompt, self._continued(pl_module, prompt)] for prompt in prompts]

    def on_fit_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Takes the samples of the adapted model where the last step is made, and keeps both."""
        target = trainer.datamodule.target
        is_done = trainer.global_step >= trainer.length.steps
        if _generates(trainer, pl_module) and is_done and target is not None and self._before:
            way = {"tag": target.tag, "direction": "rtl" if target.is_right_to_left else "ltr"}
            rows = [
                {"prompt": prompt, "base": base, "adapted": self._continued(pl_module, prompt), **way}
                for prompt, base in self._before
            ]
            if trainer.is_global_zero:
                write_text(self._folder.samples, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))

    def _continued(self, module: SparseSubnetModule, prompt: str) -> str:
        model = module.base.model
        is_training = model.training
        model.train(False)
        with torch.compiler.set_stance("force_eager"):
            text = continue_text(model, module.data.tokenizer, prompt, _TOKENS)
        model.train(is_training)
        return text


def _generates(trainer: NeuroglotTrainer, module: SparseSubnetModule) -> bool:
    return trainer.is_global_zero or is_sharded(module.base.model)


class Report(Callback):
    """Writes report.html.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def on_fit_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Writes the page, of a run that is complete and of one that stopped early."""
        if trainer.is_global_zero:
            write_report(self._folder)


def write_report(folder: RunFolder) -> None:
    """Writes a run's page, or says why there is none: the run is done and whole without it."""
    try:
        write_text(folder.report, make_run_page(folder))
        print(f"report: {folder.report}", flush=True)
    except UserError as error:
        print(f"there is no report: {error}", flush=True)

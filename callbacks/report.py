"""Samples before and after training, and the page that tells of a run once it is done."""

import json

import torch
from lightning.pytorch import Callback

from datamodules.prompts import read_prompts
from lightning_app.errors import UserError
from lightning_app.files import JSON, write_text
from lightning_app.model.generation import continue_text
from lightning_app.reports.run_page import make_run_page
from lightning_app.run import RunFolder
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer

_TOKENS = 48


class Report(Callback):
    """Lets the model continue sentences before and after training, and writes report.html.

    Args:
        folder: Of the run.
        samples: How many sentences of FLORES devtest are continued.
        has_page: Whether the page is written.
    """

    def __init__(self, folder: RunFolder, samples: int, has_page: bool) -> None:
        self._folder, self._samples, self._has_page = folder, samples, has_page
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
        if not trainer.is_global_zero or target is None or trainer.global_step or not self._samples:
            return
        prompts = read_prompts(None, target, data.flores, data.corpus.cache_dir, self._samples)
        self._before = [[prompt, self._continued(pl_module, prompt)] for prompt in prompts]

    def on_fit_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Takes the samples of the adapted model where the run is complete, and writes the page."""
        target = trainer.datamodule.target
        if not trainer.is_global_zero:
            return
        if target is not None and self._before and trainer.global_step >= trainer.length.steps:
            way = {"tag": target.tag, "direction": "rtl" if target.is_right_to_left else "ltr"}
            rows = [
                {"prompt": prompt, "base": base, "adapted": self._continued(pl_module, prompt), **way}
                for prompt, base in self._before
            ]
            write_text(self._folder.samples, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
        if self._has_page:
            try:
                write_text(self._folder.report, make_run_page(self._folder))
                print(f"report: {self._folder.report}", flush=True)
            except UserError as error:  # the run is done and whole without it
                print(f"there is no report: {error}", flush=True)

    def _continued(self, module: SparseSubnetModule, prompt: str) -> str:
        model = module.base.model
        is_training = model.training
        model.train(False)
        with torch.compiler.set_stance("force_eager"):
            text = continue_text(model, module.data.tokenizer, prompt, _TOKENS)
        model.train(is_training)
        return text

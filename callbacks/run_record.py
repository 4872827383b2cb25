"""Keeps the run folder: configuration, versions, subnetwork, metrics and the summary."""

import json
import math
import platform
import time
from importlib import metadata
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.checkpoints import BestCheckpoint
from callbacks.retention import Retention
from callbacks.throughput import Throughput
from datamodules.glotcc import Batch
from lightning_app import __version__
from lightning_app.files import JSON, disk_full, is_disk_full, write_json, write_text
from lightning_app.planning.memory import peak_gib
from lightning_app.progress import duration, short
from lightning_app.reports.tables import LOSSES, format_losses
from lightning_app.run import Run
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer

_PACKAGES = ("torch", "lightning", "transformers", "datasets", "tokenizers", "safetensors", "torchmetrics")


class RunRecord(Callback):
    """Writes the run folder as the run goes on; everything but the metrics is written atomically.

    Args:
        run: The run and its folder.
        config_yaml: The resolved configuration.
        throughput: What measures the speed that is logged.
        retention: What knows the losses of a validation.
        best: What knows which checkpoint is kept, and the figures that are taken beside the losses.
    """

    def __init__(
        self, run: Run, config_yaml: str, throughput: Throughput, retention: Retention, best: BestCheckpoint
    ) -> None:
        self.run, self.folder, self.config_yaml = run, run.folder, config_yaml
        self.throughput, self.retention, self.best = throughput, retention, best
        self._started = time.time()
        self._loss_sum: torch.Tensor | float = 0.0  # on the device, so that adding to it waits for nothing
        self._batches = 0

    def state_dict(self) -> JSON:
        """Returns what a resumed run must still know: the losses not logged yet.

        And the settings that the run began with, which it goes on with and no others; see `lightning_app.resuming`.
        """
        own = {"loss_sum": float(self._loss_sum), "batches": self._batches}
        return {**own, "settings": self.run.settings}

    def load_state_dict(self, state_dict: JSON) -> None:
        """Takes it over."""
        self._loss_sum, self._batches = state_dict["loss_sum"], state_dict["batches"]

    def on_fit_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Saves configuration, versions and subnetwork once all of the input has proved good."""
        if trainer.is_global_zero:
            write_text(self.folder.config, self.config_yaml)
            if pl_module.subnetworks is not None:
                pl_module.subnetworks.save(self.folder.subnetworks)
            self._write_record(trainer, pl_module, "training")

    def on_train_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Drops metrics of steps that are about to be made again, and logs the values before training."""
        for logger in trainer.loggers:
            if isinstance(logger, JSONLLogger):
                logger.rewind(trainer.global_step)
                if trainer.global_step == 0:
                    figures = self.best.figures_before
                    for code, (loss, bits) in self.retention.before.items():
                        figures |= {f"val/loss/{code}": loss, f"val/bits_per_byte/{code}": bits}
                    logger.log_metrics(figures, 0)

    def on_train_batch_end(
        self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, outputs: Batch, batch: Batch, batch_idx: int
    ) -> None:
        """Logs loss, as the mean over batches and processes, and speed since the last time."""
        self._loss_sum = self._loss_sum + outputs["nats_per_token"]
        self._batches += 1
        if (batch_idx + 1) % (trainer.log_every_n_steps * trainer.accumulate_grad_batches) == 0:
            mean = trainer.strategy.reduce(torch.as_tensor(self._loss_sum / self._batches), reduce_op="mean")
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            figures = {"train/loss": float(mean), "train/lr": rate}
            figures |= {f"speed/{name}": value for name, value in self.throughput.read(trainer).items()}
            for logger in trainer.loggers:
                logger.log_metrics(figures, trainer.global_step)
            self._loss_sum, self._batches = 0.0, 0

    def on_fit_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Writes the summary, marks the run complete and says where its files are.

        In this order, and all of it here: what is written in `on_train_end` is left out by a run that was killed there
        and has nothing left to train.
        """
        if not trainer.is_global_zero:
            return
        if trainer.global_step < trainer.length.steps:
            print(
                f"stopped at step {trainer.global_step} of {trainer.length.steps}: {self.folder} is not complete; the "
                "same command goes on with it",
                flush=True,
            )
            return
        write_text(self.folder.summary, self._summary(trainer, pl_module))
        self._write_record(trainer, pl_module, "complete")
        best = self.folder.best_checkpoint()
        name = best.name if best else "none"
        print(f"done: {self.folder}/ (summary.md; best checkpoint {name}{self.best.remark})", flush=True)

    def _write_record(self, trainer: NeuroglotTrainer, module: SparseSubnetModule, status: str) -> None:
        data = trainer.datamodule
        versions = {name: metadata.version(name) for name in _PACKAGES}
        record = {
            "status": status,
            "configuration": self.run.configuration,
            "neuroglot": __version__,
            "python": platform.python_version(),
            "versions": versions,
            "base": module.base.identity.as_dict(),
            "tokenizer": data.corpus.tokenizer_digest,
            "text": {code: cache.manifest["key"] for code, cache in data.caches.items()},
            "left_out": {code: cache.left_out for code, cache in data.caches.items() if cache.left_out},
            "flores": data.flores,
            "validation": data.validation_id(),
            "length": {"steps": trainer.length.steps, "tokens": trainer.length.tokens},
            "processes": trainer.world_size,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
            "method": module.method.name,
            "settings": module.method.settings,
            "lr": module.lr,
            "seed": data.seed,
            "language": [language.glotcc for language in module.languages],
            "targets": {share.language.short: share.share for share in data.targets},
        }
        if status == "complete":
            record["result"] = self._result(trainer, module)
            own = module.method.result
            results = [self.folder.result(own)] if own is not None and self.folder.result(own).is_dir() else []
            record["files"] = [path.name for path in (self.folder.summary, *results)]
        write_json(self.folder.record_file, record)

    def _result(self, trainer: NeuroglotTrainer, module: SparseSubnetModule) -> JSON:
        """Returns what the run came to, for comparing it with others; ``seconds`` are those of training alone."""
        rate = self.throughput.tokens_per_second
        return {
            "trained_parameters": module.attached.trained_parameters if module.attached is not None else 0,
            "parameters": module.base.identity.parameters,
            "steps": trainer.global_step,
            "tokens": trainer.length.tokens,
            "tokens_per_second": rate,
            "seconds": trainer.length.tokens / rate if rate else None,
            "peak_gib": peak_gib(trainer.strategy.root_device),
            "before": self.retention.before,
            "best": {key: value for key, value in self.best.kept.items() if key not in ("loss", "figures")},
            "last": {"step": trainer.global_step, "losses": self.retention.after},
            "figures": {
                "before": self.best.figures_before,
                "best": self.best.kept.get("figures", {}),
                "last": self.best.figures_now,
            },
        }

    def _summary(self, trainer: NeuroglotTrainer, module: SparseSubnetModule) -> str:
        targets = [language.short for language in module.languages]
        trained = module.attached.trained_parameters if module.attached is not None else 0
        total, length, step = module.base.identity.parameters, trainer.length, trainer.global_step
        best = self.folder.best_checkpoint()
        lines = [
            f"# {', '.join(map(str, module.languages)) or 'New base'} · {module.base_name or 'new'}",
            "",
            f"- trained {short(trained)} of {short(total)} parameters ({100 * trained / total:.2f} %): "
            f"{module.attached.describe() if module.attached is not None else ''}",
            f"- {length.steps} steps, {short(length.tokens)} tokens, "
            f"{duration(time.time() - self._started)} since this process started",
            *(f"- {speed}" for speed in [self.throughput.summary(trainer)] if speed),
            f"- best checkpoint: {best.name if best else 'none'}{self.best.remark}",
        ]
        if module.subnetworks is not None:
            pool = module.subnetworks
            rate = f", rate {pool.rate:g}" if pool.rate is not None else ""
            lines.append(f"- neurons of the pool {' '.join(pool.pool)}{rate}")
        tables, kept = [], self.best.kept
        if kept:
            about = f"at the best checkpoint, step {kept['step']}"
            tables.append((about, kept["losses"], kept["errors"], kept["figures"]))
        if kept.get("step") != step and self.retention.after:
            about = f"after the last step, {step}"
            tables.append((about, self.retention.after, self.retention.errors, self.best.figures_now))
        for when, losses, errors, figures in tables:
            lines += ["", f"FLORES dev {when}, and the change; {LOSSES}:", ""]
            lines += ["```", format_losses(losses, self.retention.before, targets, errors), "```"]
            lines += [f"- {each.title}: {text}" for each in self.best.figures if (text := each.describe(figures))]
        return "\n".join([*lines, ""])


class JSONLLogger(Logger):
    """Appends one JSON line per logged step to metrics.jsonl. A restarted run appends to the same file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        """The file."""
        return self.path

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a line."""
        row = {"step": step, "time": round(time.time(), 3)}
        row |= {key: value for key, value in metrics.items() if key != "epoch" and math.isfinite(value)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(self.path) from error
            raise

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """The configuration is in config.yaml."""

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops lines of later steps, and a line that a killed run left unfinished."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step and step > 0:
                kept.append(line)
        write_text(self.path, "".join(f"{line}\n" for line in kept))

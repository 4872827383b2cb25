"""Writes what came out of a run in the form that its users read, and keeps it where it does what the model does."""

import gc
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from lightning_app.adapted import Adaptation, load_adapted
from lightning_app.errors import UserError
from lightning_app.export.base_files import BaseFiles
from lightning_app.export.delta import LanguageDelta
from lightning_app.export.lora import Target, lora_ranks, lora_tensors, write_lora
from lightning_app.export.neuroglot_delta import Delta
from lightning_app.export.verification import Sayings, Verification
from lightning_app.files import disk_full, is_disk_full, load_checkpoint
from lightning_app.model.base import load_base, load_tokenizer

Form = Literal["delta", "hf", "lora"]


@dataclass(frozen=True)
class Source:
    """What is exported: a checkpoint, or the delta of one, and onto which base.

    Attributes:
        path: A checkpoint or ``delta.safetensors``.
        base: Hub name or folder.
        revision: Of the base.
        scale: Shrinks or stretches the change.
        has_masters: Whether a delta keeps the precision of training.
    """

    path: Path
    base: str
    revision: str | None
    scale: float = 1.0
    has_masters: bool = False

    @property
    def is_delta(self) -> bool:
        return self.path.suffix == ".safetensors"

    @classmethod
    def find(cls, path: Path, base: str | None, revision: str | None, scale: float, has_masters: bool) -> "Source":
        """Returns it with the base that it was made from, where no other place of it is given."""
        if not 0 <= scale < float("inf"):
            raise UserError(f"--scale is {scale}; expected a number of at least 0")
        if path.suffix == ".safetensors":
            model = LanguageDelta.load(path).model
        else:
            adaptation = Adaptation.read(load_checkpoint(path, is_mapped=True))
            if adaptation.architecture is not None:
                raise UserError(f"{path} is of a base from scratch, which its run has saved already, in model/")
            model = adaptation.base
        return cls(path, base or model.name, revision or model.revision or None, scale, has_masters)

    def delta(self, files: BaseFiles) -> LanguageDelta:
        """Returns its delta; raises `UserError` where its method changed more than neurons' vectors."""
        return LanguageDelta.load(self.path) if self.is_delta else LanguageDelta.of(self.path, files, self.has_masters)

    def adapted(self) -> PreTrainedModel:
        """Returns the adapted model, in the dtype of the base's files."""
        if not self.is_delta:
            return load_adapted(self.path, self.base, self.revision, scale=self.scale).model
        model = load_base(self.base, self.revision, None).model
        delta = Delta(self.path)
        changed = {matrix["weight"] for matrix in delta.matrices}
        named = {name: weight for name, weight in model.named_parameters() if name in changed}
        old = {name: weight.clone() for name, weight in named.items()}
        delta.apply(model)
        if self.scale != 1.0:
            for name, weight in named.items():
                weight.copy_(old[name].float().lerp(weight.float(), self.scale))
        return model


def export(source: Source, form: Form, out: Path, prompts: Sequence[str], target: Target = "peft") -> Verification:
    """Writes ``out``, reads it as its users do, and compares it with the adapted model on ``prompts``.

    Never holds more than one model; while the files are written, one matrix.

    Raises:
        UserError: The target exists, the base is another, the form cannot hold the change, or what was written does
            something else; then nothing is left.
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another --out, or remove it")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial{out.suffix}")
    write: dict[Form, Callable[[Source, Path, Target], None]] = {
        "delta": _write_delta,
        "hf": _write_hf,
        "lora": _write_lora,
    }
    read: dict[Form, Callable[[Source, Path], PreTrainedModel]] = {
        "delta": _read_delta,
        "hf": _read_hf,
        "lora": _read_lora,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".{out.name}.*.partial{out.suffix}"):  # of an export that was killed
        _remove(leftover)
    try:
        write[form](source, temporary, target)
        tokenizer = load_tokenizer(source.base, source.revision)
        exported = _ask(lambda: read[form](source, temporary), tokenizer, prompts)
        found = Verification.of(exported, _ask(source.adapted, tokenizer, prompts))
        found.require(str(out))
        temporary.rename(out)
        return found
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(out) from error
        raise
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _ask(load: Callable[[], PreTrainedModel], tokenizer: object, prompts: Sequence[str]) -> Sayings:
    model = load().eval()
    try:
        return Sayings.of(model, tokenizer, prompts)  # type: ignore[arg-type]
    finally:
        del model
        gc.collect()


def _write_delta(source: Source, out: Path, target: Target) -> None:
    files = BaseFiles.find(source.base, source.revision)
    source.delta(files).scaled(files, source.scale).save(out)


def _read_delta(source: Source, out: Path) -> PreTrainedModel:
    model = load_base(source.base, source.revision, None).model
    Delta(out).apply(model)
    return model


def _write_hf(source: Source, out: Path, target: Target) -> None:
    files = BaseFiles.find(source.base, source.revision)
    if source.is_delta or Adaptation.read(load_checkpoint(source.path, is_mapped=True)).neurons is not None:
        files.copy(out, source.delta(files).patches(files, source.scale))
        return
    model = source.adapted()
    model.save_pretrained(out)
    files.copy_beside(out)


def _read_hf(source: Source, out: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(out, dtype="auto", trust_remote_code=False)


def _write_lora(source: Source, out: Path, target: Target) -> None:
    files = BaseFiles.find(source.base, source.revision)
    delta = source.delta(files)
    ranks = lora_ranks(delta, target)
    write_lora(out, lora_tensors(delta.patches(files, source.scale), files, ranks), ranks, source.base)


def _read_lora(source: Source, out: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        source.base, revision=source.revision or "main", dtype="auto", trust_remote_code=False
    )
    adapted = PeftModel.from_pretrained(model, str(out))
    return adapted.merge_and_unload()

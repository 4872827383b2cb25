"""Writes what came out of a run in the form that its users read, and keeps it where it does what the model does."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from lightning_app.export.gguf import find_converter, read_gguf, write_gguf
from lightning_app.export.lora import Target, lora_bytes, lora_ranks, lora_tensors, write_lora
from lightning_app.export.neuroglot_delta import Delta
from lightning_app.export.source import Source
from lightning_app.export.verification import Sayings, Verification
from lightning_app.export.whole import new_whole, require_new
from lightning_app.model.base import load_base, load_tokenizer
from lightning_app.progress import short

Form = Literal["delta", "hf", "lora", "gguf"]


class Options(NamedTuple):
    """What some forms ask.

    Attributes:
        target: Who reads a LoRA.
        converter: llama.cpp's script that makes a gguf file; the one on PATH where not given.
    """

    target: Target = "peft"
    converter: Path | None = None


def export(
    source: Source, form: Form, out: Path, prompts: Sequence[str], options: Options, say: Callable[[str], object]
) -> Verification:
    """Writes ``out``, reads it as its users do, and compares it with the adapted model on ``prompts``.

    Never holds more than one model; while the files are written, one matrix beside the delta.

    Raises:
        UserError: The target exists, the base is another, the form cannot hold the change, or what was written does
            something else; then nothing is left.
    """
    require_new(out)
    if form == "gguf":
        find_converter(options.converter, out)
    predicted = predicted_bytes(source, form, options)
    say(f"{form}: {out} takes about {short(predicted)}B")
    with new_whole(out, predicted) as temporary:
        _FORMS[form][0](source, temporary, options)
        return verify(source, form, temporary, prompts)


def verify(source: Source, form: Form, written: Path, prompts: Sequence[str]) -> Verification:
    """Returns how what was written compares with the adapted model; raises `UserError` where it does something else."""
    tokenizer = load_tokenizer(source.base, source.revision)
    exported = _ask(lambda: _FORMS[form][1](source, written), tokenizer, prompts)
    found = Verification.of(exported, _ask(source.adapted, tokenizer, prompts))
    found.require(form)
    return found


def predicted_bytes(source: Source, form: Form, options: Options) -> int:
    """Returns what a form will take on a disk, but for its header; raises `UserError` where it cannot hold the change.

    That of a gguf file is the base's, in whose dtype it is.
    """
    if form == "delta":
        return source.delta.nbytes
    if form == "lora":
        return lora_bytes(source.delta, lora_ranks(source.delta, options.target))
    return source.files.bytes


def _ask(load: Callable[[], PreTrainedModel], tokenizer: object, prompts: Sequence[str]) -> Sayings:
    model = load().eval()
    try:
        return Sayings.of(model, tokenizer, prompts)  # type: ignore[arg-type]
    finally:
        del model
        gc.collect()


def _write_delta(source: Source, out: Path, options: Options) -> None:
    source.delta.save(out)


def _read_delta(source: Source, out: Path) -> PreTrainedModel:
    model = load_base(source.base, source.revision, None).model
    Delta(out).apply(model)
    return model


def _write_hf(source: Source, out: Path, options: Options) -> None:
    if source.has_neurons:
        source.files.copy(out, source.delta.patches(source.files))
        return
    source.adapted(is_merged=True).save_pretrained(out)
    source.files.copy_beside(out)


def _read_hf(source: Source, out: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(out, dtype="auto", trust_remote_code=False)


def _write_lora(source: Source, out: Path, options: Options) -> None:
    ranks = lora_ranks(source.delta, options.target)
    write_lora(out, lora_tensors(source.delta.patches(source.files), source.files, ranks), ranks, source.base)


def _read_lora(source: Source, out: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        source.base, revision=source.revision or "main", dtype="auto", trust_remote_code=False
    )
    adapted = PeftModel.from_pretrained(model, str(out))
    return adapted.merge_and_unload()


def _write_gguf(source: Source, out: Path, options: Options) -> None:
    write_gguf(lambda folder: _write_hf(source, folder, options), out, options.converter)


def _read_gguf(source: Source, out: Path) -> PreTrainedModel:
    return read_gguf(out)


_FORMS: dict[Form, tuple[Callable[[Source, Path, Options], None], Callable[[Source, Path], PreTrainedModel]]] = {
    "delta": (_write_delta, _read_delta),
    "hf": (_write_hf, _read_hf),
    "lora": (_write_lora, _read_lora),
    "gguf": (_write_gguf, _read_gguf),
}

"""gguf files, by llama.cpp's own converter."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.model.base_files import BaseFiles

CONVERTER = "convert_hf_to_gguf.py"
_OUTTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}  # its own choice, auto, rounds fp32 to fp16


def find_converter(given: Path | None, out: Path) -> Path:
    """Returns llama.cpp's converter: the one that is given, or the one on PATH.

    Raises:
        UserError: There is none, or nothing here reads what it writes.
    """
    found = given or (Path(there) if (there := shutil.which(CONVERTER)) else None)
    if found is None:
        raise UserError(
            f"a gguf file is made by llama.cpp's {CONVERTER}, which is not on PATH: give it with --converter PATH, or "
            f"export with --to hf --out FOLDER and then run: python {CONVERTER} FOLDER --outfile {out}"
        )
    if not found.is_file():
        raise UserError(f"--converter is {found}, where no file is; expected llama.cpp's {CONVERTER}")
    if importlib.util.find_spec("gguf") is None:
        raise UserError("the converter needs the package gguf, which also verifies what it wrote: pip install gguf")
    return found


def write_gguf(write_hf: Callable[[Path], None], out: Path, converter: Path | None) -> None:
    """Writes a gguf file in the dtype of the base.

    Args:
        write_hf: Writes the full weights to a folder, which is removed afterwards.
        out: The file.
        converter: See `find_converter`.

    Raises:
        UserError: There is no converter, or it fails.
    """
    script = find_converter(converter, out)
    folder = out.with_name(f"{out.name.removesuffix(out.suffix)}.hf.partial{out.suffix}")
    try:
        write_hf(folder)
        command = [sys.executable, str(script), str(folder), "--outfile", str(out), "--outtype", _outtype(folder)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode or not out.is_file():
            said = (ran.stderr.strip() or ran.stdout.strip() or "nothing").split("\n")[-1][:300]
            raise UserError(f"{script.name} ended with {ran.returncode} and said: {said}; nothing was kept")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _outtype(folder: Path) -> str:
    """Returns what the converter calls the dtype of full weights; raises `UserError` where it has none."""
    dtype = BaseFiles(folder).dtype
    if dtype not in _OUTTYPES:
        raise UserError(
            f"the base has weights of {dtype}; a gguf file is made of F32, F16 or BF16, so export another form"
        )
    return _OUTTYPES[dtype]


def read_gguf(path: Path) -> PreTrainedModel:
    """Returns the model of a gguf file, as transformers reads it."""
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="auto", trust_remote_code=False)

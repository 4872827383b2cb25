"""Prompts for ``predict``."""

from pathlib import Path

from datamodules.flores import read_flores
from lightning_app.errors import UserError
from lightning_app.languages import Language


def read_prompts(file: str | None, target: Language | None, flores: str, cache_dir: Path, count: int = 20) -> list[str]:
    """Returns the lines of ``file``, or the first halves of ``count`` FLORES devtest sentences of ``target``.

    Raises:
        UserError: The file cannot be read, or there is neither.
    """
    if file is not None:
        try:
            if Path(file).is_char_device():
                raise OSError(f"{file} is a device")
            prompts = [line for line in Path(file).read_text(encoding="utf-8").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot read the prompts: {error}; give a UTF-8 text file with one prompt a line"
            ) from error
        if not prompts:
            raise UserError(f"there are no prompts in {file}; give a UTF-8 text file with one prompt a line")
        return prompts
    if target is None:
        raise UserError("no prompts: give --language or --data.prompts FILE.txt")
    sentences = [text.split(" ") for text in read_flores(flores, target, "devtest", cache_dir)[:count]]
    return [" ".join(words[: max(1, len(words) // 2)]) for words in sentences]

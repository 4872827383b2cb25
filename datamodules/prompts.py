"""Prompts: of a file, or made of FLORES sentences; and their token ids, in which text is text."""

import json
import sys
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from datamodules.encoding import is_spelled, special_tokens
from datamodules.flores import read_flores
from lightning_app.errors import UserError
from lightning_app.languages import Language

STDIN = "-"
_JSON_LINES = (".jsonl", ".ndjson")
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


def read_prompts(file: str | None, target: Language | None, flores: str, cache_dir: Path, count: int = 20) -> list[str]:
    """Returns the prompts of ``file``, or the first halves of ``count`` FLORES devtest sentences of ``target``.

    Raises:
        UserError: The file cannot be read, or there is neither.
    """
    if file is not None:
        return read_prompt_file(file)
    if target is None:
        raise UserError("no prompts: give --language or --data.prompts FILE.txt")
    sentences = [text.split(" ") for text in read_flores(flores, target, "devtest", cache_dir)[:count]]
    return [" ".join(words[: max(1, len(words) // 2)]) for words in sentences]


def read_prompt_file(name: str) -> list[str]:
    """Returns the prompts of a file or, where ``name`` is -, of stdin: a line each, or JSON lines with a "prompt".

    A file is of JSON lines where its name ends in .jsonl, stdin where its first line is an object. Empty lines are no
    prompts.

    Raises:
        UserError: The file cannot be read, a line of JSON has no prompt, or there is none at all.
    """
    try:
        if Path(name).is_char_device():
            raise OSError(f"{name} is a device")
        raw = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts: {error}; give a UTF-8 text file with one prompt a line") from error
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise UserError(f"{'stdin' if name == STDIN else name} has no prompts; expected one a line")
    is_json = name.endswith(_JSON_LINES) or (name == STDIN and _prompt_of(lines[0][1]) is not None)
    return [_required(line, f"line {number} of {name}") if is_json else line for number, line in lines]


def _required(line: str, where: str) -> str:
    prompt = _prompt_of(line)
    if prompt is None or not prompt.strip():
        raise UserError(f'{where} is {line[:60]!a}; expected JSON with a text as "prompt": {{"prompt": "..."}}')
    return prompt


def _prompt_of(line: str) -> str | None:
    """Returns the prompt in a line of JSON, if it has one."""
    try:
        found = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return None
    prompt = found.get("prompt") if isinstance(found, dict) else None
    return prompt if isinstance(prompt, str) else None


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `UserError` where a tokenizer does not know how a chat is written."""
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template, as that of a base model; leave --chat out")


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, is_chat: bool = False) -> list[int]:
    """Returns the token ids of a prompt that is to be continued or, where it ``is_chat``, answered.

    A special token that is spelled in the prompt stays text. The tokenizer begins a text as it always does; an EOS that
    it puts at the end is left out, for there is more to come.

    Raises:
        UserError: The chat template does not take it, or it has no token.
    """
    ids = _encode_chat(tokenizer, prompt) if is_chat else _encode(tokenizer, prompt, is_text=True, adds_special=True)
    while ids and ids[-1] == tokenizer.eos_token_id and not is_chat:
        ids = ids[:-1]
    if not ids:
        raise UserError("the prompt has no token; write something")
    return ids


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, is_text: bool, adds_special: bool) -> list[int]:
    return tokenizer(text, split_special_tokens=is_text, add_special_tokens=adds_special, verbose=False)["input_ids"]


def _encode_chat(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Returns the ids of a chat that a user begins; only where the prompt spells special tokens, part by part."""

    def written(content: str) -> str:
        turn = [{"role": "user", "content": content}]
        try:
            return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise UserError(f"the chat template does not take the prompt: {' '.join(str(error).split())}") from error

    whole = written(prompt)
    if not is_spelled(list(special_tokens(tokenizer).values()), [prompt]):
        return _encode(tokenizer, whole, is_text=False, adds_special=False)
    head, _, tail = written(_MARK).partition(_MARK)
    own = prompt if prompt in whole else prompt.strip()  # some templates strip it
    parts = ((head, False), (own, True), (tail, False))
    return [number for text, is_text in parts for number in _encode(tokenizer, text, is_text, adds_special=False)]

"""Answers of two models in turn, on the terminal as they grow, and in a file."""

import json
import signal
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from datamodules.prompts import encode_prompt, require_chat_template
from lightning_app.cli.verb import say
from lightning_app.errors import UserError
from lightning_app.evaluation.preferences import Answers
from lightning_app.export.switching import BaseAndAdapted
from lightning_app.files import JSON, write_text
from lightning_app.model.sampling import Sampling, stream_text

_KEEP_EVERY_S = 30  # a job that is killed loses no more


class SideBySide:
    """Answers prompts with both models, shows the answers as they grow, and keeps them.

    Args:
        two: The models.
        sampling: How they answer.
        is_chat: Whether prompts are asked by the chat template.
        made_by: What is said of the models and the settings beside every answer.
    """

    def __init__(self, two: BaseAndAdapted, sampling: Sampling, is_chat: bool, made_by: JSON) -> None:
        if is_chat:
            require_chat_template(two.tokenizer)
        self.two, self.sampling, self.is_chat, self.made_by = two, sampling, is_chat, made_by
        self.answers: list[Answers] = []

    def require_room(self, prompts: Sequence[str]) -> None:
        """Raises `UserError` where a prompt leaves no room for an answer in the base's context, where this ends."""
        for number, prompt in enumerate(prompts, start=1):
            self._encoded(prompt, f"prompt {number}")

    def _encoded(self, prompt: str, name: str) -> list[int]:
        ids, context = encode_prompt(self.two.tokenizer, prompt, self.is_chat), self.two.context
        if context is not None and len(ids) >= context:
            raise UserError(
                f"{name} has {len(ids)} tokens, which leaves no room for an answer in the base's context of {context}; "
                "shorten it"
            )
        return ids

    def answer_all(self, prompts: Iterator[str] | Sequence[str], out: Path | None) -> None:
        """Answers prompts one after another; what is answered when Ctrl-C ends it is written all the same."""
        is_typed = isinstance(prompts, Iterator)
        kept = time.monotonic()
        try:
            for prompt in prompts:
                try:
                    self._answer(prompt, is_shown=not is_typed)
                except UserError as error:
                    if not is_typed:
                        raise
                    say(str(error))
                if time.monotonic() > kept + _KEEP_EVERY_S:
                    self._keep(out)
                    kept = time.monotonic()
        except KeyboardInterrupt as stop:
            say("")
            if not isinstance(prompts, Iterator):
                say(f"interrupted; {len(self.answers)} of {len(prompts)} prompts are answered")
                raise SystemExit(128 + signal.SIGINT) from stop
        finally:
            self._keep(out)
        if out is not None:
            say(f"answers: {out}")

    def _answer(self, prompt: str, is_shown: bool) -> None:
        ids, number = self._encoded(prompt, "the prompt"), len(self.answers)
        room = (self.two.context or sys.maxsize) - len(ids)
        sampling = replace(self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, room))
        if is_shown:
            say(f"prompt   {_shown(prompt)}")
        said: dict[bool, str] = {}
        for is_adapted, name in ((False, "base"), (True, "adapted")):
            self.two.switch(is_adapted)
            print(f"{name:<9}", end="", flush=True)
            pieces = []
            for piece in stream_text(self.two.model, self.two.tokenizer, ids, sampling, number):
                print(_shown(piece), end="", flush=True)
                pieces.append(piece)
            print(flush=True)
            said[is_adapted] = "".join(pieces)
        self.answers.append(Answers(prompt, said[False], said[True]))
        print(flush=True)

    def _keep(self, out: Path | None) -> None:
        if out is not None and self.answers:
            write_text(out, "".join(self._rows()))

    def _rows(self) -> Iterator[str]:
        for each in self.answers:
            row = {"prompt": each.prompt, "base": each.base, "adapted": each.adapted, "made_by": self.made_by}
            yield json.dumps(row, ensure_ascii=False) + "\n"


def _shown(text: str) -> str:
    """Returns text without what would steer the terminal."""
    steers = (each not in "\n\t" and unicodedata.category(each) == "Cc" for each in text)
    return "".join("\N{REPLACEMENT CHARACTER}" if does else each for each, does in zip(text, steers, strict=True))


def typed() -> Iterator[str]:
    """Yields what is typed, a prompt a line, up to an empty line or the end."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        say("type the beginning of a text, or a question; an empty line or Ctrl-D ends")
    while True:
        try:
            prompt = input("> " if is_terminal else "")
        except EOFError:
            print(flush=True)
            return
        except UnicodeDecodeError:
            say("that is not UTF-8; type it again")
            continue
        if not prompt.strip():
            return
        yield prompt

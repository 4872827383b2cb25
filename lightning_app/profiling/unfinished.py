"""Counts side by side that are not finished: kept after every look, so that a killed count ends as any other."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lightning_app import __version__
from lightning_app.errors import UserError
from lightning_app.files import JSON, load_tensors, save_tensors
from lightning_app.languages import Language, find_language
from lightning_app.profiling.counting import LanguageCount
from lightning_app.profiling.processes import Processes

_KIND = "unfinished counts"
_STATE = ("counts", "tokens", "batches", "blocks")


@dataclass
class UnfinishedCounts:
    """A file beside the atlas. When a language stops depends on the halves of all, also of those that have stopped.

    Attributes:
        path: Of the file, which may not exist.
        settings: What the counts depend on beside the text; those of other settings are left alone.
        processes: Who counts; the first writes.
    """

    path: Path
    settings: JSON
    processes: Processes
    _found: tuple[dict[str, Tensor], JSON] | None = field(default=None, init=False)

    def languages(self, missing: list[Language]) -> list[Language]:
        """Returns what is to be counted side by side: ``missing``, and what was counted beside it. Collective.

        Raises:
            UserError: The file is damaged.
        """
        found = self._read() if self.processes.is_first and self.path.is_file() else None
        self._found = self.processes.agree(found)
        codes = list(self._found[1]["languages"]) if self._found else []
        if not {language.glotcc for language in missing} <= set(codes):
            self._found = None
            return missing
        return [find_language(code) for code in codes]

    def _read(self) -> tuple[dict[str, Tensor], JSON] | None:
        try:
            tensors, metadata = load_tensors(self.path, _KIND)
        except UserError as error:
            raise UserError(f"{error}: delete {self.path}, the languages are counted from the start then") from error
        return (tensors, metadata) if metadata["settings"] == self.settings else None

    def restore(self, counts: list[LanguageCount]) -> int:
        """Brings counts to where they were kept, and returns how many looks they have had."""
        if self._found is None or any(
            self._found[1]["languages"][count.language.glotcc]["source"] != count.source for count in counts
        ):
            return 0
        tensors, metadata = self._found
        for count in counts:
            code, own = count.language.glotcc, metadata["languages"][count.language.glotcc]
            count.take({name: tensors[f"{name}.{code}"] for name in _STATE}, self.processes)
            count.curve, count.is_ended = [(tokens, overlap) for tokens, overlap in own["curve"]], own["is_ended"]
        return metadata["looks"]

    def keep(self, counts: list[LanguageCount], looks: int) -> None:
        """Writes the counts, atomically. Collective."""
        tensors: dict[str, Tensor] = {}
        languages: JSON = {}
        for count in counts:
            code, state = count.language.glotcc, count.state(self.processes)
            tensors |= {f"{name}.{code}": state[name] for name in _STATE}
            languages[code] = {"source": count.source, "curve": count.curve, "is_ended": count.is_ended}
        if self.processes.is_first:
            metadata = {"version": __version__, "settings": self.settings, "looks": looks, "languages": languages}
            save_tensors(self.path, tensors, metadata, _KIND)

    def remove(self) -> None:
        """Removes the file, once the atlas holds every language."""
        if self.processes.is_first:
            self.path.unlink(missing_ok=True)

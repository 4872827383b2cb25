"""Which languages the training text is in, and in what parts: targets to adapt to, and replay of others beside them."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from lightning_app.errors import UserError
from lightning_app.languages import Language, find_language, find_languages


@dataclass(frozen=True)
class Share:
    """A language's part of a whole."""

    language: Language
    share: float


def read_targets(language: str | None, mixture: dict[str, float] | None) -> list[Share]:
    """Returns the languages to adapt to, or those of a mixture, with shares that sum to one; none where none is named.

    Args:
        language: ``cy``, ``cy,mt`` or ``cy:3,mt:1``.
        mixture: Languages and shares in any unit.

    Raises:
        UserError: A language is unknown, a share is not above zero, or both are given.
    """
    if not mixture:
        return [Share(*pair) for pair in find_languages(language)] if language else []
    if language or not all(0 < share < inf for share in mixture.values()):
        raise UserError(
            "--data.mixture needs shares above zero and no --language beside it; found "
            f"{mixture} and language {language or 'none'}"
        )
    total = sum(mixture.values())
    languages = named_once("--data.mixture", mixture)
    return [Share(language, share / total) for language, share in zip(languages, mixture.values(), strict=True)]


def named_once(key: str, codes: Iterable[str]) -> list[Language]:
    """Returns the languages that a key names; raises `UserError` where one is named twice, under whatever names."""
    languages = [find_language(code) for code in codes]
    for language in languages:
        if languages.count(language) > 1:
            raise UserError(f"{key} names {language} twice; name each language once")
    return languages


def read_replay(replay: dict[str, float] | None, targets: list[Share], is_mixture: bool) -> list[Share]:
    """Returns the languages that are replayed beside the targets, with their shares of the whole text.

    Raises:
        UserError: A share does not lie between 0 and 1, they leave nothing for the target, a language is a target or
            named twice, or there is no target.

    >>> read_replay({"en": 0.2}, read_targets("cy", None), is_mixture=False)[0].share
    0.2
    """
    if not replay:
        return []
    expected = "expected other languages and their shares of the training text, e.g. --data.replay '{en: 0.2}'"
    if is_mixture or not targets:
        beside = "--data.mixture; put its languages into the mixture" if is_mixture else "no --language; name a target"
        raise UserError(f"--data.replay is {replay} beside {beside}")
    if not all(0 < share < 1 for share in replay.values()) or sum(replay.values()) >= 1:
        raise UserError(f"--data.replay is {replay}: shares must lie above 0 and sum to less than 1; {expected}")
    shares = [Share(find_language(code), share) for code, share in replay.items()]
    taken = {target.language for target in targets}
    for share in shares:
        if share.language in taken:
            raise UserError(f"--data.replay is {replay}: {share.language} is a target or named twice; {expected}")
        taken.add(share.language)
    return shares


def beside_replay(targets: list[Share], replay: list[Share]) -> list[Share]:
    """Returns the shares that the targets have of the whole text, replay included.

    >>> [share.share for share in beside_replay(read_targets("cy:3,mt:1", None), [Share(find_language("en"), 0.2)])]
    [0.6000000000000001, 0.2]
    """
    rest = 1.0 - sum(share.share for share in replay)
    return [Share(target.language, target.share * rest) for target in targets]


def own_text(files: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
    """Returns the own files of ``data.files`` by the languages' codes of GlotCC."""
    languages = named_once("--data.files", files)
    return {language.glotcc: text for language, text in zip(languages, files.values(), strict=True)}

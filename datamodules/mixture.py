"""Which languages a run trains on, and by what shares."""

from dataclasses import dataclass

from lightning_app.errors import UserError
from lightning_app.languages import Language, find_language


@dataclass(frozen=True)
class Share:
    """A language's part of the training text."""

    language: Language
    share: float


def read_shares(target: Language | None, mixture: dict[str, float] | None) -> list[Share]:
    """Returns the target alone, or the languages of a mixture with shares that sum to one.

    Raises:
        UserError: A share is not above zero, or both are given.
    """
    if not mixture:
        return [Share(target, 1.0)] if target is not None else []
    total = sum(mixture.values())
    if target is not None or total <= 0 or min(mixture.values()) <= 0:
        raise UserError(
            "--data.mixture needs shares above zero and no --language beside it; found "
            f"{mixture} and language {target or 'none'}"
        )
    return [Share(find_language(code), share / total) for code, share in mixture.items()]

"""How the figures of tasks are written in tables."""

_SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match", "is_read", "f1")
_OF_A_HUNDRED = ("bleu", "chrf", "ter", "rouge")


def shown_factor(metric: str) -> int:
    """Returns what a figure is multiplied by where it is shown: shares are shown in per cent.

    >>> shown_factor("acc_norm"), shown_factor("bits_per_byte")
    (100, 1)
    """
    return 100 if metric in _SHARES else 1


def digits(metric: str) -> int:
    """Returns how many decimals are shown: two of what goes from 0 to 100, four of bits per byte and its like.

    >>> digits("acc"), digits("sentence_bleu"), digits("bits_per_byte")
    (2, 2, 4)
    """
    return 2 if not metric or metric in _SHARES or any(part in metric for part in _OF_A_HUNDRED) else 4


def heading(metric: str) -> str:
    """Returns the metric with its unit.

    >>> heading("acc"), heading("chrf++")
    ('acc, %', 'chrf++')
    """
    return f"{metric}, %" if metric in _SHARES else metric

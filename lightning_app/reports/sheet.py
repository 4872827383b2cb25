"""The sheet on which native speakers judge pairs of answers, as HTML and CSV, and the tally of what they judged."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from lightning_app import __version__
from lightning_app.evaluation.preferences import Agreement, Judgement, Pair, Tally, by_majority
from lightning_app.files import JSON
from lightning_app.languages import Language
from lightning_app.reports.layout import blocks, wrapped

_TEMPLATE = Path(__file__).with_suffix(".html")
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the begin of one


def sheet_html(pairs: Sequence[Pair], language: Language | None) -> str:
    """Returns the page: everything is in it, and it asks no network for anything.

    Args:
        pairs: What is to be judged.
        language: Of the texts; where None, each text's direction is seen from its first letters.
    """
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return page.render(
        pairs=pairs,
        sheet=pairs[0].name.split("-")[0],
        language=language.name if language is not None else "text",
        tag=language.tag if language is not None else "",
        direction="auto" if language is None else "rtl" if language.is_right_to_left else "ltr",
    )


def sheet_csv(pairs: Sequence[Pair]) -> str:
    """Returns the same for a spreadsheet; column ``better`` is to be filled in with A, B or tie."""
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(["pair", "prompt", "A", "B", "better"])
    rows.writerows([each.name, *map(_as_text, (each.prompt, each.a, each.b)), ""] for each in pairs)
    return "\N{ZERO WIDTH NO-BREAK SPACE}" + out.getvalue()  # which tells spreadsheets that it is UTF-8


def _as_text(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULAS) else cell


def sheet_key(pairs: Sequence[Pair], same: int, made_by: JSON) -> JSON:
    """Returns which answers are whose, and what made them.

    Args:
        pairs: What is on the sheet.
        same: Prompts that are not, because both models answer the same.
        made_by: The models, and how they were asked.
    """
    return {
        "note": "Not for those who judge: it says which answer is the adapted model's.",
        "version": __version__,
        "adapted": {each.name: each.adapted for each in pairs},
        "same": same,
        "made_by": made_by,
    }


def format_tally(judges: Mapping[str, Mapping[str, Judgement]], pairs: int, same: int) -> str:
    """Returns wins, ties and losses of the adapted model by judge, and how far judges agree.

    Args:
        judges: What each says of the pairs that it judged.
        pairs: On the sheet.
        same: Prompts that both models answered the same.
    """
    tallies = {name: Tally.of(list(said.values())) for name, said in judges.items()}
    if len(judges) > 1:
        tallies[f"most of {len(judges)}"] = Tally.of(list(by_majority(list(judges.values())).values()))
    rows = [_row(name, tally, pairs) for name, tally in tallies.items()]
    said = (
        "A win is an answer of the adapted model that was judged better than the base's. Its share is of the wins and "
        "losses, ties left out, with the exact interval of Clopper and Pearson; p is of the exact two-sided sign test."
    )
    lines = ["\n\n".join(blocks(rows, ["judge"])), "", wrapped(said)]
    if len(judges) > 1:
        lines.append(_format_agreement(Agreement.of(list(judges.values()))))
    if same:
        lines.append(f"To {same} more prompts both models gave the same answer; these are not on the sheet.")
    return "\n".join(lines)


def _row(name: str, tally: Tally, pairs: int) -> dict[str, str]:
    low, high = tally.interval
    judged = tally.decided + tally.ties
    return {
        "judge": name,
        "wins": str(tally.wins),
        "ties": str(tally.ties),
        "losses": str(tally.losses),
        "not judged": str(pairs - judged),
        "share of wins": f"{100 * tally.wins / tally.decided:.1f} %" if tally.decided else "",
        "95 % interval": f"{100 * low:.1f} to {100 * high:.1f} %" if tally.decided else "",
        "p": f"{tally.p:.4g}",
    }


def _format_agreement(found: Agreement) -> str:
    if not found.pairs:
        return "No pair was judged by two, so nothing is known of their agreement."
    alpha = f", Krippendorff's alpha {found.alpha:.2f} (1 is full, 0 what chance gives)"
    alpha = "" if math.isnan(found.alpha) else alpha
    return wrapped(f"Two judges of a pair agree in {100 * found.share:.1f} % of {found.pairs} pairs{alpha}.")

"""What a comparison says, in sentences: what is best, what cannot be told apart from it, and what was not equal."""

import math
from collections.abc import Mapping, Sequence

from lightning_app.comparison.ranking import Difference, Group, Ranking, best_groups, rank
from lightning_app.comparison.results import RunResult
from lightning_app.files import JSON
from lightning_app.languages import find_language
from lightning_app.progress import short


def number(estimate: Mapping[str, float | None], sign: str = "", with_half_width: bool = True, digits: int = 4) -> str:
    """Returns an estimate as tables show it; nothing where there is none.

    >>> number({"mean": 2.10342, "half_width": 0.00118, "n": 3}), number({"mean": 0.5, "half_width": None}, "+")
    ('2.1034 ± 0.0012', '+0.5000')
    """
    mean, half_width = estimate.get("mean"), estimate.get("half_width")
    if mean is None:
        return ""
    if not math.isfinite(mean):
        return "none"
    text = f"{mean:{sign}.{digits}f}"
    return f"{text} ± {half_width:.{digits}f}" if half_width is not None and with_half_width else text


def rate(value: float) -> str:
    """Returns a learning rate as people write it.

    >>> rate(1e-4), rate(0.00025), rate(1)
    ('1e-4', '2.5e-4', '1e0')
    """
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def findings(results: Sequence[RunResult], groups: Sequence[Group], described: JSON) -> list[str]:
    """Returns the sentences below a comparison.

    Args:
        results: Finished runs that may be compared.
        groups: The same by method and rate.
        described: The comparison as data: equal gain, fronts, and rows.
    """
    best = best_groups(groups)
    sentences = [_ranking(rank(best), languages(list(described["targets"])))]
    if described["equal_gain"]:
        sentences.append(_equal_gain(described))
    sentences.append(_units(results, groups, described))
    unequal = [*_settings(results), *_edges(groups, best), *_lost(groups), *_unequal(results)]
    return [*sentences, " ".join(unequal)] if unequal else sentences


def languages(codes: Sequence[str]) -> str:
    """Returns their names.

    >>> languages(["cy"]), languages(["cy", "ka", "en"])
    ('Welsh', 'Welsh, Georgian and English')
    """
    return _listed([find_language(code).name for code in codes])


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _seeds(group: Group) -> str:
    return f"{len(group.runs)} seeds" if len(group.runs) > 1 else "one seed"


def _ranking(ranking: Ranking, target: str) -> str:
    best, others = ranking.best, ranking.others
    loss = number(vars(best.estimate(lambda run: run.target_loss)))
    if loss == "none":
        return f"No method has a finite loss on {target}."
    if not others:
        text = f"{best.label} was compared with the base only: its loss on {target} is {loss} over {_seeds(best)}."
        return text if len(best.runs) > 1 else f"{text} One seed gives no interval."
    text = f"{best.label} has the lowest mean loss on {target}, {loss} over {_seeds(best)}"
    apart = [other for other in others if other.is_told_apart]
    close = [other for other in others if not other.is_told_apart]
    if not close:
        return f"{text}, and is told apart from every other method."
    unknown = [other for other in close if other.estimate is None or other.estimate.half_width is None]
    if len(best.runs) == 1 or all(len(other.group.runs) == 1 for other in others):
        return f"{text}. One seed gives no interval, so no method is told apart from another; run more seeds of each."
    known = [other for other in close if other not in unknown]
    text += f"; not told apart from it: {_listed([_difference(other) for other in known])}" if known else ""
    if unknown:
        names = _listed([other.group.label for other in unknown])
        text += f"; no two seeds in common with {names}, so nothing is told apart there"
    return text + (f"; the other {len(apart)} are told apart." if apart else ".")


def _difference(other: Difference) -> str:
    return f"{other.group.label} (by {number(vars(other.estimate), '+')})"


def _equal_gain(described: JSON) -> str:
    equal, watched = described["equal_gain"], described["watched"]
    rises = {label: rise for label, rise in equal["retention"].items() if rise is not None}
    missing = [label for label, rise in equal["retention"].items() if rise is None]
    gained = {front["label"] for front in described["fronts"] if front["line"][-1][0] > 0}
    short_of_it, nothing = ([label for label in missing if (label in gained) == has] for has in (True, False))
    ordered = [f"{label} {rise:+.4f}" for label, rise in sorted(rises.items(), key=lambda item: item[1])]
    scaled = [front["label"] for front in described["fronts"] if front["scaled"]]
    text = (
        f"At equal gain, {equal['gain']:.4f} nats per token, the most that {equal['set_by']} reaches, the mean loss on "
        f"{languages(watched) if len(watched) <= 3 else f'{len(watched)} watched languages'} rises by: "
        f"{', '.join(ordered)} (straight between the rates' means"
    )
    if scaled:
        runs = len(described["scaled_runs"])
        text += f", scale curves of {runs} run{'s' * (runs > 1)} included for {_listed(scaled)}"
    text += ")."
    text += f" {_listed(short_of_it)} {_do(short_of_it)} not gain as much." if short_of_it else ""
    return f"{text} {_listed(nothing)} gained nothing." if nothing else text


def _do(names: Sequence[str]) -> str:
    return "do" if len(names) > 1 else "does"


def _units(results: Sequence[RunResult], groups: Sequence[Group], described: JSON) -> str:
    text = "Losses are nats per token on the validation text, lower is better"
    if any(len(group.runs) > 1 for group in groups):
        text += "; ± is half a 95 % Student-t interval over seeds, methods are told apart by differences paired by seed"
        text += ", without correction for their number"
    if any(row["told_apart"] for row in described["rows"]):
        text += "; **bold** is what is told apart from every other method"
    if described["watched"]:
        text += ". Columns of watched languages are rises of their loss"
        text += ", ↑ where it lies beyond its interval" if any(len(group.runs) > 1 for group in groups) else ""
    if len(groups) > len({group.label for group in groups}):
        text += ". Each method is shown at its rate with the lowest target loss, chosen on this same text"
    return f"{text}."


def _settings(results: Sequence[RunResult]) -> list[str]:
    """Returns what is set other than by default, where the labels do not say it."""
    set_of = {run.method: run.settings for run in results if run.settings and run.label == run.method}
    return [f"Set for {method}: {settings}." for method, settings in set_of.items()]


def _edges(groups: Sequence[Group], best: Sequence[Group]) -> list[str]:
    """Returns which methods may have a better rate than those tried: their best is the lowest or highest."""
    sentences = []
    rates = {one.label: [other.lr for other in groups if other.label == one.label] for one in best}
    for end, name in ((max, "highest"), (min, "lowest")):
        at_end = [g.label for g in best if len(rates[g.label]) > 1 and g.lr == end(rates[g.label])]
        if at_end:
            are = "are best at their" if len(at_end) > 1 else "is best at its"
            beyond = "higher" if end is max else "lower"
            sentences.append(f"{_listed(at_end)} {are} {name} rate, so {beyond} ones may be better still.")
    return sentences


def _lost(groups: Sequence[Group]) -> list[str]:
    lost = [f"{g.label} at {rate(g.lr)}" for g in groups if not math.isfinite(g.mean(lambda run: run.target_loss))]
    return [f"No validation of some run had a finite loss: {_listed(lost)}."] if lost else []


def _unequal(results: Sequence[RunResult]) -> list[str]:
    """Returns what else differed between the runs, and what that makes of the table."""
    sentences = []
    tokens = [run.tokens for run in results]
    if max(tokens) > 1.01 * min(tokens):
        sentences.append(
            f"The runs trained on unequal numbers of tokens, {short(min(tokens))} to {short(max(tokens))}."
        )
    devices = sorted({run.device for run in results})
    if len(devices) > 1:
        sentences.append(f"Times, speeds and memory are of different devices: {_listed(devices)}.")
    return sentences

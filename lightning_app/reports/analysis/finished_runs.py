"""Projections left out, more text, and languages rich and poor in resources."""

from typing import TYPE_CHECKING

from lightning_app.analysis.finished_runs import Ablation, Correlation, Outcome, ResourceEffect, SizeEffect
from lightning_app.languages import find_language
from lightning_app.progress import short
from lightning_app.reports.analysis.neurons import name_of
from lightning_app.reports.analysis.shown import Shown, show
from lightning_app.reports.drawing import COLOURS, WIDTH_IN, new_figure
from lightning_app.reports.layout import blocks, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _row(outcome: Outcome) -> dict[str, str]:
    spread = f"{outcome.lowest:+.4f} to {outcome.highest:+.4f}" if outcome.runs > 1 else "-"
    return {
        "runs": str(outcome.runs),
        "trained": short(outcome.trained_parameters),
        "gain": f"{outcome.gain:+.4f}",
        "of the runs": spread,
        "others": f"{outcome.retention:+.4f}" if outcome.retention == outcome.retention else "-",
    }


_UNITS = "gain: fall of the target's loss; others: rise of the watched languages' loss; nats per token"


def _targets(codes: tuple[str, ...]) -> str:
    return ", ".join(name_of(find_language(code)) for code in codes)


@show.register
def _show_ablation(found: Ablation) -> Shown:
    rows = [{"trained projections": key, **_row(each)} for key, each in found.outcomes.items()]
    return Shown(
        f"ablation-{'-'.join(found.targets)}",
        f"What training fewer projections gives, {_targets(found.targets)}",
        "Fall of the target's loss (blue) and rise of the watched languages' (orange) where only these projections of "
        "the neurons were trained.",
        "\n".join([wrapped(found.what), *blocks(rows, ["trained projections"]), _UNITS]),
        found,
        lambda: _draw_ablation(found),
    )


def _draw_ablation(found: Ablation) -> "Figure":
    figure, axes = new_figure(WIDTH_IN, 1.8 + 0.5 * len(found.outcomes))
    places = range(len(found.outcomes))
    every = list(found.outcomes.values())
    errors = [[each.gain - each.lowest for each in every], [each.highest - each.gain for each in every]]
    axes.barh([y - 0.18 for y in places], [each.gain for each in every], 0.36, color=COLOURS[0], xerr=errors,
              capsize=2, label="gain in the target")  # fmt: skip
    axes.barh([y + 0.18 for y in places], [each.retention for each in every], 0.36, color=COLOURS[1],
              label="rise in watched languages")  # fmt: skip
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set_yticks(places, list(found.outcomes))
    axes.invert_yaxis()
    axes.set_xlabel("nats per token")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


@show.register
def _show_size(found: SizeEffect) -> Shown:
    rows = [{"tokens": short(size), **_row(each)} for size, each in found.outcomes.items()]
    return Shown(
        f"size-{'-'.join(found.targets)}",
        f"What more text gives, {_targets(found.targets)}",
        "Fall of the target's loss and rise of the watched languages' by tokens of training.",
        "\n".join([wrapped(found.what), *blocks(rows, ["tokens"]), _UNITS]),
        found,
        lambda: _draw_size(found),
    )


def _draw_size(found: SizeEffect) -> "Figure":
    figure, axes = new_figure(WIDTH_IN, 3.8)
    every, sizes = list(found.outcomes.values()), list(found.outcomes)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.plot(sizes, [each.gain for each in every], color=COLOURS[0], marker="o", label="gain in the target")
    axes.fill_between(sizes, [each.lowest for each in every], [each.highest for each in every], color=COLOURS[0],
                      alpha=0.18, linewidth=0)  # fmt: skip
    axes.plot(sizes, [each.retention for each in every], color=COLOURS[1], marker="s", linestyle="--",
              label="rise in watched languages")  # fmt: skip
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.set_xlabel("tokens of training")
    axes.set_ylabel("nats per token")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


@show.register
def _show_resources(found: ResourceEffect) -> Shown:
    rows = [
        {
            "language": name_of(language),
            "CC-100": "-" if language.cc100_gib is None else f"{language.cc100_gib:g} GiB",
            "Joshi class": "-" if language.joshi is None else str(language.joshi),
            "gain": f"{outcome.gain:+.4f} nats",
            "gain, bits per byte": f"{outcome.bits_gain:+.4f}",
            "runs": str(outcome.runs),
        }
        for language, outcome in zip(found.languages, found.outcomes, strict=True)
    ]
    lines = [f"with the size of CC-100: {_said(found.by_size)}", f"with the Joshi class: {_said(found.by_class)}"]
    return Shown(
        "resources",
        "Gains beside how much text of a language there is",
        f"Each point is a language: fall of its bits per byte. {lines[0].capitalize()}; {lines[1]}.",
        "\n".join([wrapped(found.what), *blocks(rows, ["language"]), *lines]),
        found,
        lambda: _draw_resources(found),
    )


def _said(found: Correlation | None) -> str:
    if found is None:
        return "too few languages have one"
    return f"rank correlation {found.rho:+.2f}, p {found.p:.2f}, of {found.languages} languages"


def _draw_resources(found: ResourceEffect) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    gains = [each.bits_gain for each in found.outcomes]
    for axes, measures, label in (
        (left, [each.cc100_gib for each in found.languages], "CC-100, GiB"),
        (right, [each.joshi for each in found.languages], "Joshi class"),
    ):
        known = [
            (x, y, each.short) for x, y, each in zip(measures, gains, found.languages, strict=True) if x is not None
        ]
        _points(axes, known)
        axes.set_xlabel(label)
        axes.axhline(0, color="#888888", linewidth=0.8, zorder=0)
    left.set_xscale("log")
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.set_xlim(-0.5, 5.5)
    left.set_ylabel("gain, bits per byte")
    return figure


def _points(axes: "Axes", points: list[tuple[float, float, str]]) -> None:
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o", color=COLOURS[0])
    for x, y, code in points:
        axes.annotate(code, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=11)

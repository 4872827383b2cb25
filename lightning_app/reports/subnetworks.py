"""What people read about the subnetworks of a pool."""

from dataclasses import asdict, dataclass

from lightning_app.files import JSON
from lightning_app.identity import ModelIdentity
from lightning_app.languages import find_language
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.subnetworks import Subnetworks
from lightning_app.progress import short


@dataclass(frozen=True)
class LanguageFigures:
    """One language's neurons; what needs an unknown number of the model is None."""

    language: str
    short: str
    neurons: int
    parameters: int | None
    share_of_model: float | None
    neurons_per_layer: list[int]


@dataclass(frozen=True)
class SubnetworkFigures:
    """Figures of a pool's subnetworks.

    Attributes:
        model: The model, as far as it is known.
        pool: Short codes of the languages that were compared.
        rate: Share of all neurons taken over the whole pool; None where unknown, as ``quantile`` and ``tau``.
        quantile: Where the activation threshold lies among all probabilities.
        tau: The activation threshold.
        atlas: Where the sets come from.
        union_neurons: Neurons of any language.
        union_share: The same as a share of all; None where the model is unknown.
        languages: A row each.
        overlap: Jaccard index of every pair of languages.
    """

    model: ModelIdentity
    pool: list[str]
    rate: float | None
    quantile: float | None
    tau: float | None
    atlas: str
    union_neurons: int
    union_share: float | None
    languages: list[LanguageFigures]
    overlap: dict[str, dict[str, float]]

    def as_json(self) -> JSON:
        """Returns the figures as plain data."""
        return asdict(self)


def describe_subnetworks(subnetworks: Subnetworks, model: ModelIdentity) -> SubnetworkFigures:
    """Returns the figures of subnetworks on ``model``, which may be known in part."""
    by_short = {find_language(code).short: neurons for code, neurons in subnetworks.neurons.items()}
    union = len(NeuronSet({}).union(*by_short.values()))
    total = model.layers * model.neurons_per_layer
    return SubnetworkFigures(
        model=model,
        pool=[find_language(code).short for code in subnetworks.pool],
        rate=subnetworks.rate,
        quantile=subnetworks.quantile,
        tau=subnetworks.tau,
        atlas=subnetworks.atlas,
        union_neurons=union,
        union_share=union / total if total else None,
        languages=[_figures(code, neurons, model) for code, neurons in subnetworks.neurons.items()],
        overlap={a: {b: by_short[a].overlap(by_short[b]) for b in by_short if b != a} for a in by_short},
    )


def _figures(code: str, neurons: NeuronSet, model: ModelIdentity) -> LanguageFigures:
    language = find_language(code)
    parameters = neurons.parameters(model.hidden_size) if model.hidden_size else None
    share = parameters / model.parameters if parameters is not None and model.parameters else None
    per_layer = neurons.per_layer(model.layers)
    return LanguageFigures(language.name, language.short, len(neurons), parameters, share, per_layer)


def format_subnetworks(figures: SubnetworkFigures) -> str:
    """Returns the figures as tables."""
    model = figures.model
    shape = [f"{model.layers} layers"]
    shape += [f"{model.neurons_per_layer} neurons per layer"] if model.neurons_per_layer else []
    shape += [f"hidden size {model.hidden_size}"] if model.hidden_size else []
    shape += [f"{model.parameters:,} parameters"] if model.parameters else []
    lines = [f"{model.name}: {', '.join(shape)}"]
    union = f"{figures.union_neurons} neurons in all"
    if figures.union_share is not None:
        union += f", {100 * figures.union_share:.2f} % of the FFN neurons"
    if figures.rate is not None:
        union += f" (rate {figures.rate:g}, threshold {figures.tau:.4f})"
    lines += [union, "", f"{'language':<22}{'neurons':>9}{'parameters':>12}{'of model':>10}   neurons per layer"]
    for row in figures.languages:
        parameters = _millions(row.parameters) if row.parameters is not None else "-"
        share = f"{100 * row.share_of_model:.2f} %" if row.share_of_model is not None else "-"
        name = f"{row.language} ({row.short})" if row.language != row.short else row.short
        layers = " ".join(str(count) for count in row.neurons_per_layer)
        lines.append(f"{name:<22}{row.neurons:>9}{parameters:>12}{share:>10}   {layers}")
    return "\n".join([*lines, "", *_format_overlap(figures.overlap)])


def _millions(parameters: int) -> str:
    """Returns a number of parameters as the paper's tables give it, small ones in short."""
    return f"{parameters / 1e6:.1f}M" if parameters >= 1_000_000 else short(parameters)


def _format_overlap(overlap: dict[str, dict[str, float]]) -> list[str]:
    codes = list(overlap)
    width = max(6, *(len(code) + 2 for code in codes))
    lines = ["overlap (Jaccard)", " " * width + "".join(f"{code:>{width}}" for code in codes)]
    for row in codes:
        cells = ["." if row == column else f"{overlap[row][column]:.2f}" for column in codes]
        lines.append(f"{row:<{width}}" + "".join(f"{cell:>{width}}" for cell in cells))
    return lines

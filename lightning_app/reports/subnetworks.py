"""What people read about the subnetworks of a pool: plain data first, text made from it second."""

from lightning_app.files import JSON
from lightning_app.identity import ModelIdentity
from lightning_app.languages import find_language
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.subnetworks import Subnetworks
from lightning_app.progress import short


def describe_subnetworks(subnetworks: Subnetworks, model: ModelIdentity) -> JSON:
    """Returns the figures of subnetworks as plain data.

    Per language: neurons, trainable parameters (3 * D per neuron), their share of the model, neurons per layer; and
    the Jaccard overlap of every pair of languages. What needs an unknown number of the model is None.
    """
    languages, total = [], model.parameters
    for code, neurons in subnetworks.neurons.items():
        language, parameters = find_language(code), neurons.parameters(model.hidden_size) if model.hidden_size else None
        languages.append(
            {
                "language": language.name,
                "short": language.short,
                "neurons": len(neurons),
                "parameters": parameters,
                "share_of_model": parameters / model.parameters
                if parameters is not None and model.parameters
                else None,
                "neurons_per_layer": neurons.per_layer(model.layers),
            }
        )
    by_short = {find_language(code).short: neurons for code, neurons in subnetworks.neurons.items()}
    overlaps = {a: {b: by_short[a].overlap(by_short[b]) for b in by_short if b != a} for a in by_short}
    union = NeuronSet({}).union(*by_short.values())
    of_model = model.layers * model.neurons_per_layer
    return {
        "model": model.as_dict(),
        "pool": [find_language(code).short for code in subnetworks.pool],
        "rate": subnetworks.rate,
        "quantile": subnetworks.quantile,
        "tau": subnetworks.tau,
        "atlas": subnetworks.atlas,
        "union_neurons": len(union),
        "union_share": len(union) / of_model if of_model else None,
        "languages": languages,
        "overlap": overlaps,
    }


def format_subnetworks(described: JSON) -> str:
    """Returns the figures of `describe_subnetworks` as tables."""
    model = described["model"]
    shape = [f"{model['layers']} layers"]
    shape += [f"{model['neurons_per_layer']} neurons per layer"] if model["neurons_per_layer"] else []
    shape += [f"hidden size {model['hidden_size']}"] if model["hidden_size"] else []
    shape += [f"{model['parameters']:,} parameters"] if model["parameters"] else []
    lines = [f"{model['name']}: {', '.join(shape)}"]
    union = f"{described['union_neurons']} neurons in all"
    if described["union_share"] is not None:
        union += f", {100 * described['union_share']:.2f} % of the FFN neurons"
    if described["rate"] is not None:
        union += f" (rate {described['rate']:g}, threshold {described['tau']:.4f})"
    lines += [union, "", f"{'language':<22}{'neurons':>9}{'parameters':>12}{'of model':>10}   neurons per layer"]
    for row in described["languages"]:
        parameters = _millions(row["parameters"]) if row["parameters"] is not None else "-"
        share = f"{100 * row['share_of_model']:.2f} %" if row["share_of_model"] is not None else "-"
        name = f"{row['language']} ({row['short']})" if row["language"] != row["short"] else row["short"]
        layers = " ".join(str(count) for count in row["neurons_per_layer"])
        lines.append(f"{name:<22}{row['neurons']:>9}{parameters:>12}{share:>10}   {layers}")
    return "\n".join([*lines, "", *_format_overlap(described["overlap"])])


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

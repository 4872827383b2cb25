"""What people read about neurons: subnetworks, how two of them differ, and atlases."""

import torch

from lightning_app.files import JSON
from lightning_app.identity import ModelIdentity
from lightning_app.languages import find_language
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.subnetworks import Subnetworks, overlaps
from lightning_app.progress import short
from lightning_app.reports.layout import blocks


def describe_subnetworks(subnetworks: Subnetworks, model: ModelIdentity, by_rate: Subnetworks | None = None) -> JSON:
    """Returns the figures of subnetworks as plain data.

    Per language: neurons, trainable parameters (3 * D per neuron), their share of the model, neurons per layer; and
    the Jaccard overlap of every pair of languages. What needs an unknown number of the model is None.

    Args:
        subnetworks: Those of a pool.
        model: Theirs, with whatever is known of it.
        by_rate: What one rate for all would select, where these have other sizes.
    """
    languages = []
    for code, neurons in subnetworks.neurons.items():
        language, parameters = find_language(code), neurons.parameters(model.hidden_size) if model.hidden_size else None
        languages.append(
            {
                "language": language.name,
                "short": language.short,
                "neurons": len(neurons),
                "neurons_by_rate": len(by_rate.neurons[code]) if by_rate is not None else None,
                "parameters": parameters,
                "share_of_model": parameters / model.parameters
                if parameters is not None and model.parameters
                else None,
                "neurons_per_layer": neurons.per_layer(model.layers),
            }
        )
    by_short = {find_language(code).short: neurons for code, neurons in subnetworks.neurons.items()}
    union = NeuronSet({}).union(*by_short.values())
    of_model = model.layers * model.neurons_per_layer
    return {
        "model": model.as_dict(),
        "pool": [find_language(code).short for code in subnetworks.pool],
        "rate": subnetworks.rate,
        "quantile": subnetworks.quantile,
        "tau": subnetworks.tau,
        "sizes": subnetworks.sizes,
        "atlas": subnetworks.atlas,
        "union_neurons": len(union),
        "union_share": len(union) / of_model if of_model else None,
        "languages": languages,
        "overlap": overlaps(by_short),
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
        tau = described["tau"]
        union += f" (rate {described['rate']:g}, threshold {'of each language' if tau is None else f'{tau:.4f}'})"
    if described["sizes"]:
        own = {key: value for key, value in described["sizes"].items() if key != "taus"}
        union += f"; in sizes of their own: {', '.join(f'{key} {value}' for key, value in own.items())}"
    rows = described["languages"]
    beside = any(row["neurons_by_rate"] is not None for row in rows)
    names = [f"{row['language']} ({row['short']})" if row["language"] != row["short"] else row["short"] for row in rows]
    width = max([21, *map(len, names)]) + 1
    columns = f"{'neurons':>9}{'by rate' if beside else '':>{9 * beside}}{'parameters':>12}{'of model':>10}"
    lines += [union, "", f"{'language':<{width}}{columns}   neurons per layer"]
    for name, row in zip(names, rows, strict=True):
        parameters = _millions(row["parameters"]) if row["parameters"] is not None else "-"
        share = f"{100 * row['share_of_model']:.2f} %" if row["share_of_model"] is not None else "-"
        by_rate = f"{row['neurons_by_rate']:>9}" if beside else ""
        layers = " ".join(str(count) for count in row["neurons_per_layer"])
        lines.append(f"{name:<{width}}{row['neurons']:>9}{by_rate}{parameters:>12}{share:>10}   {layers}")
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


def describe_difference(one: Subnetworks, other: Subnetworks) -> JSON:
    """Returns how the subnetworks of two files differ, for each language that both have.

    Neurons are compared one by one where the layers of both have the same numbers; the depth at which they lie, as a
    share of the layers, always: ``depth_distance`` is the area between the two cumulative distributions, 0 to 1.
    """
    shared = [code for code in one.pool if code in other.neurons]
    is_alike = one.model.layers == other.model.layers and (
        not (one.model.neurons_per_layer and other.model.neurons_per_layer)
        or one.model.neurons_per_layer == other.model.neurons_per_layer
    )
    languages = []
    for code in shared:
        a, b = one.neurons[code], other.neurons[code]
        languages.append(
            {
                "language": find_language(code).name,
                "short": find_language(code).short,
                "neurons": len(a),
                "of_other": len(b),
                "shared": int(a.is_in(b).sum()) if is_alike else None,
                "overlap": a.overlap(b) if is_alike else None,
                "depth_distance": _depth_distance(a, one.model.layers, b, other.model.layers),
            }
        )
    lacks = [find_language(code).short for code in one.pool if code not in other.neurons]
    return {"model": one.model.name, "other": other.model.name, "languages": languages, "only_here": lacks}


def _depth_distance(one: NeuronSet, layers: int, other: NeuronSet, layers_of_other: int, steps: int = 1000) -> float:
    if not len(one) or not len(other):
        return 1.0
    depth = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    shares = []
    for neurons, count in ((one, layers), (other, layers_of_other)):
        ends = torch.tensor([0, *neurons.per_layer(count)], dtype=torch.float64).cumsum(0) / len(neurons)
        layer = (depth * count).long()
        shares.append(ends[layer] + (depth * count - layer) * (ends[layer + 1] - ends[layer]))
    return float((shares[0] - shares[1]).abs().mean())


def format_difference(described: JSON) -> str:
    """Returns the figures of `describe_difference` as a table."""
    rows = [
        {
            "language": f"{row['language']} ({row['short']})",
            "neurons": f"{row['neurons']:,}",
            "of the other": f"{row['of_other']:,}",
            "shared": "-" if row["shared"] is None else f"{row['shared']:,}",
            "overlap": "-" if row["overlap"] is None else f"{row['overlap']:.3f}",
            "depth apart": f"{row['depth_distance']:.3f}",
        }
        for row in described["languages"]
    ]
    lines = [f"{described['model']} against {described['other']}"]
    lines += [*blocks(rows, ["language"])] if rows else ["they have no language in common"]
    if described["only_here"]:
        lines.append(f"not in the other: {' '.join(described['only_here'])}")
    if rows:
        lines.append(
            "overlap is Jaccard, of models with the same layers; depth apart is 0 where the neurons lie as deep in both"
        )
    return "\n".join(lines)


def describe_atlas(atlas: Atlas) -> JSON:
    """Returns what an atlas holds, as plain data: per language tokens, text, and how stable its set was."""
    languages = []
    for code, tokens in atlas.tokens.items():
        language, curve = find_language(code), atlas.stability.get(code, {}).get("curve")
        source = atlas.sources[code]
        languages.append(
            {
                "language": language.name,
                "short": language.short,
                "family": language.family,
                "tokens": tokens,
                "mean_probability": float(atlas.counts[code].double().mean()) / tokens,
                "stability": curve[-1][1] if curve else None,
                "text": f"{source.get('data_set', '')} {source.get('configuration', '')}".strip(),
            }
        )
    return {"model": atlas.model.as_dict(), "block_size": atlas.block_size, "languages": languages}


def format_atlas(described: JSON) -> str:
    """Returns the figures of `describe_atlas` as a table."""
    model, languages = described["model"], described["languages"]
    rows = [
        {
            "language": f"{row['language']} ({row['short']})" if row["language"] != row["short"] else row["short"],
            "family": row["family"],
            "tokens": short(row["tokens"]),
            "gates open": f"{100 * row['mean_probability']:.1f} %",
            "stability": "-" if row["stability"] is None else f"{row['stability']:.3f}",
            "text": row["text"],
        }
        for row in languages
    ]
    lines = [
        f"{model['name']}: {model['layers']} layers of {model['neurons_per_layer']} neurons, "
        f"{len(languages)} languages, {short(sum(row['tokens'] for row in languages))} tokens in blocks of "
        f"{described['block_size']}"
    ]
    lines += [*blocks(rows, ["language"])] if rows else []
    lines.append("stability: overlap of the sets that two halves of a language's text give, where it was measured")
    return "\n".join(lines)

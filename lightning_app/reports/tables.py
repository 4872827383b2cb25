"""What people read about a subnetwork, a plan or a validation: plain data first, text made from it second."""

from collections.abc import Sequence

from datamodules.supply import Supply
from lightning_app.files import JSON
from lightning_app.identity import ModelIdentity
from lightning_app.languages import find_language
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.subnetworks import Subnetworks
from lightning_app.planning.plan import DiskPlan, MemoryPlan, Plan, TimePlan
from lightning_app.progress import duration, short
from lightning_app.training.metrics import NOISE, Errors, Losses, is_beyond_noise

_GIB = 2**30

LOSSES = (
    "nats per token are the mean of -ln of the right token's probability, bits per byte compare across tokenizers; "
    f"lower is better, and 'worse' is a rise of more than {NOISE:g} standard errors over the blocks of the text"
)
"""What the figures are, for whoever sees them the first time."""


def describe_subnetworks(subnetworks: Subnetworks, model: ModelIdentity) -> JSON:
    """Returns the figures of subnetworks as plain data.

    Per language: neurons, trainable parameters (3 * D per neuron), their share of the model, neurons per layer; and
    the Jaccard overlap of every pair of languages. What needs an unknown number of the model is None.
    """
    languages = []
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


def worst_first(losses: Losses, before: Losses, errors: Errors) -> dict[str, bool]:
    """Returns which languages got worse by more than noise, those that did first, the worst of them at the head.

    >>> losses = {"cy": [2.0, 1.0], "en": [2.5, 1.0], "ru": [2.9, 1.0]}
    >>> worst_first(losses, dict.fromkeys(losses, [2.2, 1.0]), dict.fromkeys(losses, 0.1))
    {'ru': True, 'en': True, 'cy': False}
    """
    rises = {code: loss - before.get(code, [loss])[0] for code, (loss, _) in losses.items()}
    is_worse = {code: is_beyond_noise(rise, errors.get(code)) for code, rise in rises.items()}
    ordered = sorted(losses, key=lambda code: (not is_worse[code], -rises[code] if is_worse[code] else 0.0))
    return {code: is_worse[code] for code in ordered}


def format_losses(losses: Losses, before: Losses, targets: Sequence[str], errors: Errors) -> str:
    """Returns loss (nats per token) and bits per byte of every language, and the changes where ``before`` has it.

    What got worse by more than noise comes first, and says so.
    """
    lines = [f"{'language':<22}{'loss':>9}{'change':>9}{'bits/byte':>11}{'change':>9}"]
    for code, is_worse in worst_first(losses, before, errors).items():
        loss, bits = losses[code]
        language = find_language(code)
        name = f"{language.name} ({code})" if language.name != code else code
        mark = (" worse" if is_worse else "") + (" <- target" if code in targets else "")
        if code in before:
            changes = f"{loss - before[code][0]:>+9.4f}{bits:>11.4f}{bits - before[code][1]:>+9.4f}"
        else:
            changes = f"{'':>9}{bits:>11.4f}"
        lines.append(f"{name:<22}{loss:>9.4f}{changes}{mark}")
    return "\n".join(lines)


def format_plan(plan: Plan) -> str:
    """Returns a plan as text."""
    trained, every = plan.trained_parameters, plan.model.parameters
    neurons = f"{plan.neurons} neurons ({plan.neurons_from})" if plan.neurons is not None else plan.neurons_from
    lines = [
        f"plan: {plan.language} on {plan.model.name}",
        "",
        f"trained     {neurons}",
        f"            {short(trained)} of {short(every)} parameters, {100 * trained / every:.2f} %",
        "",
        *_format_memory(plan.memory),
        "",
        *_format_supplies("text", plan.text),
        *_format_supplies("profiling", plan.profiling_text),
    ]
    if not plan.text and not plan.profiling_text:
        lines.append("text        not looked at: the tokenizer is still to be trained")
    return "\n".join([*lines, "", *_format_time(plan.time), "", *_format_disk(plan.disk, bool(plan.text))])


def _format_memory(memory: MemoryPlan) -> list[str]:
    sizes, batches = memory.sizes, memory.batches
    rows = [
        ("weights", sizes.weights, ""),
        ("trained weights, states", sizes.neurons, "with gradients"),
        ("activations", sizes.activations, "kept for the backward"),
        ("logits", sizes.logits, "a chunk at a time"),
        ("peak of training", sizes.training, _batch(batches.training)),
        ("peak of validation", sizes.validation, _batch(batches.validation)),
    ]
    rows += [("peak of profiling", sizes.profiling, _batch(batches.profiling))] if batches.profiling else []
    there = f"{memory.device} has {_size(memory.device_gib)}"
    rows.append(("of the whole process", round(memory.peak_gib * _GIB), there))
    lines = [
        f"{'memory' if i == 0 else '':<12}{name:<26}{_size(size / _GIB):>10}  {note}".rstrip()
        for i, (name, size, note) in enumerate(rows)
    ]
    card = memory.smallest_card_gb
    lines.append(f"{'':<12}fits a GPU of {card} GB" if card else f"{'':<12}fits no single GPU")
    if memory.advice:
        lines.append(f"warning: this does not fit {memory.device}; {memory.advice}")
    return lines


def _batch(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} tokens"


def _size(gib: float) -> str:
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{1024 * gib:.1f} MiB"


def _format_supplies(title: str, supplies: list[Supply]) -> list[str]:
    lines = []
    for i, supply in enumerate(supplies):
        if supply.cached >= supply.wanted:
            there = "all cached"
        elif supply.available is None:
            there = f"{short(supply.cached)} cached; the source is out of reach"
        else:
            about = "" if supply.is_exact else "about "
            there = f"{short(supply.cached)} cached, {about}{short(supply.available)} in all"
        load = f", {short(supply.download_bytes)}B to read over the network" if supply.download_bytes else ""
        name, wanted = f"{title if i == 0 else '':<12}{supply.language}", f"{short(supply.wanted)} tokens wanted"
        lines.append(f"{name:<38}{wanted}: {there}{load}")
    return lines


def _format_time(time: TimePlan) -> list[str]:
    tokens = f"{short(time.tokens)} tokens of training, {short(time.profiled_tokens)} of profiling"
    lines = [f"time        {tokens}; at half the limit"]
    for name, phases in time.limit_s.items():
        parts = [f"{phase} {duration(2 * seconds)}" for phase, seconds in phases.items() if seconds]
        lines.append(f"{'':<12}{name}: {', '.join(parts)}")
    return lines


def _format_disk(disk: DiskPlan, is_text_known: bool) -> list[str]:
    load = disk.base_download_bytes
    base = "unknown size" if load is None else f"{short(load)}B to download" if load else "nothing to download"
    tokens = "no tokens to make" if is_text_known else "tokens not known yet"
    if disk.token_cache_bytes:
        network = f" from {short(disk.text_download_bytes)}B over the network" if disk.text_download_bytes else ""
        tokens = f"{short(disk.token_cache_bytes)}B of tokens to make{network}"
    checkpoints, free = f"{short(disk.checkpoints_bytes)}B of checkpoints", f"{short(disk.free_bytes)}B free"
    lines = [f"disk        base: {base}; {tokens}; {checkpoints}; {free}"]
    flores = " ".join(disk.flores_to_download)
    lines.append(f"{'':<12}FLORES {f'to download for {flores}' if flores else 'of every validation language is here'}")
    if disk.too_small:
        places = ", ".join(disk.too_small)
        lines.append(f"warning: the disk of {places} is too small; set --data.cache_dir, --run_dir or HF_HOME")
    return lines

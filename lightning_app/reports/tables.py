"""What people read about a subnetwork, a plan or a validation: plain data first, text made from it second."""

from collections.abc import Sequence

from datamodules.examination import Fertility, TextReport
from datamodules.supply import Supply
from lightning_app.languages import Language, find_language
from lightning_app.planning.plan import DiskPlan, EvaluationPlan, MemoryPlan, Plan, TaskPlan, TimePlan
from lightning_app.progress import duration, short
from lightning_app.training.metrics import NOISE, Errors, Losses, is_beyond_noise

_GIB = 2**30
_SHOWN = 5

LOSSES = (
    "nats per token are the mean of -ln of the right token's probability, bits per byte compare across tokenizers; "
    f"lower is better, and 'worse' is a rise of more than {NOISE:g} standard errors over the blocks of the text"
)
"""What the figures are, for whoever sees them the first time."""


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
        *_format_fertility(plan),
        *_format_supplies("text", plan.text),
        *_format_supplies("profiling", plan.profiling_text),
    ]
    if not plan.text and not plan.profiling_text:
        lines.append("text        not looked at: the tokenizer is still to be trained")
    lines += ["", *_format_time(plan.time), "", *_format_disk(plan.disk, bool(plan.text))]
    return "\n".join([*lines, *(["", *_format_evaluation(plan.evaluation)] if plan.evaluation is not None else [])])


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


def _format_fertility(plan: Plan) -> list[str]:
    if plan.fertility is None or not plan.text:
        return []
    wanted = plan.text[0].wanted
    text = f"{short(wanted)} tokens are about {short(round(wanted * plan.fertility.bytes_per_token))}B of text"
    return [f"{'tokenizer':<12}{describe_fertility(plan.fertility)}", f"{'':<12}{text}"]


def describe_fertility(found: Fertility) -> str:
    """Returns how a tokenizer cuts a language, in a line."""
    parts = [f"{found.tokens_per_word:.2f} tokens a word"] if found.tokens_per_word is not None else []
    parts.append(f"{found.bytes_per_token:.1f} bytes a token")
    if found.times_other is not None:
        parts.append(f"{found.times_other:.2f} times the tokens of English for the same sentences")
    if found.fallback:
        parts.append(f"{100 * found.fallback:.1f} % of them parts of characters")
    return ", ".join(parts)


def format_text(language: Language, found: TextReport, cut: Fertility | None) -> str:
    """Returns what a text is, before it is trained on."""
    low, middle, high = found.lengths or [0, 0, 0]
    share, more = 100 / max(found.documents, 1), "" if found.is_whole else ", the first of more"
    held = [f"{100 * part:.2f} % of {split}" for split, part in found.held_out.items()]
    rows = [
        ("documents", f"{found.documents}{more}, {short(found.text_bytes)}B"),
        ("a document", f"{short(middle)}B in the middle, four of five between {short(low)}B and {short(high)}B"),
        ("tokenizer", describe_fertility(cut) if cut is not None else ""),
        ("warnings", ", ".join(f"{kind} {count}" for kind, count in found.warnings.items()) or "none"),
        ("certainty", ", ".join(f"{value:.2f}" for value in found.certainty) or "none is given"),
        ("FLORES", f"runs of 13 words that are in the text: {', '.join(held)}"),
        ("", f"{found.documents_holding} documents hold some ({found.documents_holding * share:.2f} %)"),
        ("duplicates", f"{found.exact_duplicates} exact ({found.exact_duplicates * share:.2f} %)"),
        ("", f"{found.near_duplicates} with near ones" if found.near_duplicates is not None else ""),
        *(("holds", f"document {each['document']}: {each['begins']!r}") for each in found.holding[:_SHOWN]),
    ]  # fmt: skip
    return "\n".join([f"text of {language}", *(f"  {name:<12}{value}" for name, value in rows if value)])


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


def _format_evaluation(evaluation: EvaluationPlan) -> list[str]:
    planned = [task for task in evaluation.tasks if not task.why_not]
    width = max((len(task.task) for task in planned), default=0) + 2
    lines = [f"evaluation  {len(planned)} tasks; at half the limit"]
    for task in planned:
        sizes = f"{task.items} items, {task.sequences} sequences, {short(task.tokens)} tokens"
        answers = f", answers of up to {task.answer_tokens}" if task.answer_tokens else ""
        seconds = 2 * next(iter(task.limit_s.values()))
        lines.append(f"{'':<12}{task.task:<{width}}{sizes}{answers}: {duration(seconds)}{_known(task)}")
    if any(map(_known, planned)):
        lines.append(f"{'':<12}* by the known size of data that is not here")
    lines += [f"{'':<12}left out: {task.task}: {task.why_not}" for task in evaluation.tasks if task.why_not]
    for place, seconds in evaluation.limit_s.items():
        lines.append(f"{'':<12}base and adapted on {place}: {duration(4 * seconds)}")
    batch = f"{_size(evaluation.weights_gib)} of weights, {_size(evaluation.batch_gib)} for the largest batch"
    return [*lines, f"{'':<12}memory: {batch}, {_batch(evaluation.batch)}"]


def _known(task: TaskPlan) -> str:
    return "" if task.is_from_data else " *"


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

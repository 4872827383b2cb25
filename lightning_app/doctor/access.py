"""What a run reads: its configuration, base, tokenizer, training text and FLORES."""

import json
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers.quantizers import AutoHfQuantizer

from datamodules.flores import look_at
from datamodules.supply import Supply
from lightning_app.doctor.finding import Finding, Findings, ok, warning, wrong
from lightning_app.doctor.setup import Setup
from lightning_app.errors import UserError
from lightning_app.files import UNREADABLE, one_line
from lightning_app.languages import Language
from lightning_app.model.base import Base
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.model.loading import base_size
from lightning_app.planning.checks import CHECKS, Checked
from lightning_app.progress import short


def check_settings(setup: Setup) -> Findings:
    """The keys fit together, as far as can be told without loading anything."""
    if setup.run is None:
        yield wrong("settings", setup.refusal)
        return
    refused = list(_refusals(setup.run))
    yield from refused
    if not refused:
        method, languages = setup.run.module.method.name, ", ".join(map(str, setup.run.module.languages))
        yield ok("settings", f"method {method}{f' for {languages}' if languages else ''}; the keys fit together")


def _refusals(run: Checked) -> Iterator[Finding]:
    for check in CHECKS:
        try:
            check(run)
        except UserError as error:
            yield wrong("settings", str(error))


def check_base(setup: Setup) -> Findings:
    """The base can be read, is a causal language model, and has its files."""
    run = setup.run
    if run is None or run.module.base_name is None:
        return
    base, name = run.base, run.module.base_name
    if run.selects_neurons:
        find_gated_ffns(base.model)
    if (refusal := _quantisation(base)) is not None:
        yield wrong("base", refusal, "take the base in full precision")
    size, download = base_size(name, run.module.revision)
    if not download and (missing := _missing_weights(name, run.module.revision)) is not None:
        yield wrong(
            "base", f"{name} {missing}", "download it again" if size is not None else "run again with a network"
        )
        return
    identity = base.identity
    at = f" at {identity.revision[:7]}" if identity.revision else ""
    shape = f"{identity.layers} layers of {identity.neurons_per_layer} neurons, {short(identity.parameters)} parameters"
    there = f"{short(size or 0)}B, of which {short(download)}B to download" if download else "its files are here"
    yield ok("base", f"{identity.name}{at}: {shape}; {there}")


def _missing_weights(name: str, revision: str | None) -> str | None:
    """Returns which weights a folder, or what is cached of the hub, has not; None where all are there."""
    cached = try_to_load_from_cache(name, "config.json", revision=revision) if not Path(name).is_dir() else None
    folder = Path(cached).parent if isinstance(cached, str) else Path(name)
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        has_any = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
        return None if has_any else "has its configuration here, but no weights (*.safetensors)"
    try:
        wanted = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except UNREADABLE as error:
        return f"has an index of its weights that is damaged ({one_line(error)})"
    missing = [file for file in wanted if not (folder / file).is_file()]
    return f"lacks {len(missing)} of {len(wanted)} files of weights, {missing[0]} for one" if missing else None


def _quantisation(base: Base) -> str | None:
    """Returns why quantised weights cannot be loaded here; None where they can, or there are none."""
    settings = getattr(base.model.config, "quantization_config", None)
    if settings is None:
        return None
    try:
        AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment()
    except (ImportError, RuntimeError, ValueError) as error:
        return f"{base.identity.name} is quantised: {' '.join(str(error).split())[:160]}"
    return None


def check_tokenizer(setup: Setup) -> Findings:
    """The tokenizer can be read."""
    if setup.run is None:
        return
    corpus = setup.run.data.corpus
    if corpus.new_vocabulary is not None:
        yield ok("tokenizer", f"to be trained, with {corpus.new_vocabulary} entries")
        return
    if corpus.tokenizer_name is not None:
        begins = "begins a text with BOS" if corpus.start_token is not None else "begins a text with nothing"
        yield ok("tokenizer", f"{corpus.tokenizer_name}: {len(corpus.tokenizer)} entries, {begins}")


def check_text(setup: Setup) -> Findings:
    """There is text of every language that is trained on or counted."""
    if setup.run is None:
        return
    if not setup.run.data.shares:
        yield warning("language", "none is named, so its text was not looked at", "--language cy, or --config cy.yaml")
    plan = setup.plan
    if plan is None or setup.run.data.corpus.new_vocabulary is not None:
        for language in setup.languages:
            yield from _look_at_text(setup.run, language)
        return
    for supply in plan.text:
        yield _training_text(supply)
    if setup.run.module.needs_selection:
        yield from _profiling_text(plan.profiling_text)


def _look_at_text(run: Checked, language: Language) -> Findings:
    """Looks at one language by itself, where no plan counts its tokens: what it lacks hides not what others lack."""
    try:
        text_bytes, network_bytes = run.data.corpus.sizes(language)
    except UserError as error:
        yield wrong("text", str(error))
    else:
        load = f", {short(network_bytes)}B to read over the network" if network_bytes else ""
        yield ok("text", f"{language}: about {short(text_bytes)}B of text{load}")


def _training_text(supply: Supply) -> Finding:
    said = f"{supply.language}: {short(supply.wanted)} tokens wanted, {short(supply.cached)} cached"
    if supply.cached >= supply.wanted:
        return ok("text", said)
    if supply.available is None:
        return wrong("text", f"{said}, and where more is cannot be reached", "run again with a network")
    load = f", {short(supply.download_bytes)}B to read over the network" if supply.download_bytes else ""
    return ok("text", f"{said}, {'' if supply.is_exact else 'about '}{short(supply.available)} in all{load}")


def _profiling_text(supplies: list[Supply]) -> Findings:
    away = [supply for supply in supplies if supply.available is None and supply.cached < supply.wanted]
    if away:
        codes = " ".join(supply.language.short for supply in away)
        said = f"{len(away)} languages are to be counted, and their text cannot be reached ({codes})"
        yield wrong("pool", said, "run again with a network")
    elif not supplies:
        yield ok("pool", "every language is counted in the atlas")
    else:
        there = sum(min(supply.wanted, supply.available or supply.wanted) for supply in supplies)
        missing = sum(supply.missing for supply in supplies)
        load = sum(supply.download_bytes for supply in supplies)
        said = f"{len(supplies)} languages to count, {100 * (1 - missing / there):.0f} % of their text cached"
        yield ok("pool", said + (f", {short(load)}B to read over the network" if load else ""))


def check_flores(setup: Setup) -> Findings:
    """The sentences that validate can be read in every language, target and watched."""
    if setup.run is None:
        return
    data, good = setup.run.data, []
    for language in data.validation_languages:
        try:
            look_at(data.flores, language, data.corpus.cache_dir)
            good.append(language)
        except UserError as error:
            yield wrong("flores", str(error))
    if good:
        load = [language.short for language in data.flores_to_download if language in good]
        there = f"to download for {' '.join(load)}" if load else "all here"
        yield ok("flores", f"{data.flores}: {' '.join(language.short for language in good)}; {there}")

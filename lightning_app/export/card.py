"""The card of a published result: what it is, of what it was made, what it is good for, and how to load it."""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lightning_app import __version__
from lightning_app.files import JSON
from lightning_app.languages import Language, find_language

_RELATIONS = {"delta": "adapter", "lora": "adapter", "hf": "finetune", "gguf": "quantized"}
_LIBRARIES = {"delta": "neuroglot", "lora": "peft", "hf": "transformers", "gguf": "gguf"}
_LICENCE = ("license", "license_name", "license_link")
_NATS_AND_BITS = {"loss": "nats per token", "bits_per_byte": "bits per byte"}
_LOADING = {
    "delta": """from huggingface_hub import hf_hub_download
from transformers import AutoModelForCausalLM
from neuroglot_delta import Delta  # the file is in this repository; it needs torch and safetensors alone

model = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")
delta = Delta(hf_hub_download("{repository}", "delta.safetensors")).apply(model)
delta.remove()  # the base again, bit for bit""",
    "lora": """from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")
model = PeftModel.from_pretrained(model, "{repository}")""",
    "hf": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repository}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{repository}")""",
    "gguf": """from llama_cpp import Llama

model = Llama.from_pretrained("{repository}", filename="*.gguf")""",
}


@dataclass(frozen=True)
class Published:
    """What a card tells of.

    Attributes:
        repository: OWNER/NAME.
        form: delta, lora, hf or gguf.
        base: Hub name of the base; None where it is not on the hub.
        base_card: What the base's own card says of it: its licence.
        about: Language, text, licences and figures, as a delta has them.
        per_layer: Trained neurons by layer; None where others than neurons were trained.
        evaluation: Of evaluation.json.
        facts: What was done, by label, as the run's report says it.
        samples: Prompts with what base and adapted model answered.
    """

    repository: str
    form: str
    base: str | None
    base_card: Mapping[str, object]
    about: JSON
    per_layer: Sequence[int] | None
    evaluation: JSON
    facts: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[Mapping[str, str]] = ()

    @property
    def languages(self) -> list[Language]:
        return [find_language(code) for code in self.about.get("language", []) if code]

    @property
    def names(self) -> str:
        return " and ".join(each.name for each in self.languages) or "a language"


def make_card(published: Published) -> str:
    """Returns the card, README.md, with the hub's metadata at its head."""
    sections = {
        f"{published.names}, for {published.base or 'a model that is not on the hub'}": _opening(published),
        "How to load it": f"```python\n{_loading(published)}\n```",
        "Figures": "\n".join(_figures(published)),
        "What it writes": _samples(published.samples),
        "How it was trained": "\n".join(f"- {label}: {_plain(fact)}" for label, fact in published.facts.items()),
        "Neurons": _neuron_map(published.per_layer),
        "Text and licences": "\n".join(_text(published)),
        "Intended use and limits": _limits(published),
    }
    body = "\n\n".join(
        f"{'#' if not number else '##'} {heading}\n\n{text}"
        for number, (heading, text) in enumerate(sections.items())
        if text
    )
    return str(ModelCard(f"---\n{_metadata(published).to_yaml()}\n---\n\n{body}\n"))


def _metadata(published: Published) -> ModelCardData:
    codes = [each.short if re.fullmatch("[a-z]{2,3}", each.short) else each.glotcc[:3] for each in published.languages]
    data_sets = [text["data_set"] for text in published.about.get("text", []) if is_hub_name(text.get("data_set"))]
    licence: JSON = {key: published.base_card[key] for key in _LICENCE if published.base_card.get(key)}
    relation: JSON = {"base_model": published.base, "base_model_relation": _RELATIONS[published.form]}
    results = [*_losses_as_results(published), *_tasks_as_results(published)]
    return ModelCardData(
        language=list(dict.fromkeys(codes)) or None,
        datasets=list(dict.fromkeys(data_sets)) or None,
        library_name=_LIBRARIES[published.form],
        pipeline_tag="text-generation",
        tags=["neuroglot", "language-adaptation"],
        model_name=published.repository.partition("/")[2] if results else None,
        eval_results=results or None,
        **(licence or {"license": "other", "license_name": "of-the-base-model"}),
        **(relation if published.base else {}),
    )


def _losses_as_results(published: Published) -> Iterator[EvalResult]:
    for code, figures in _after(published).items():
        language = find_language(code)
        for (kind, name), value in zip(_NATS_AND_BITS.items(), figures, strict=False):
            yield EvalResult(
                task_type="text-generation", dataset_type="openlanguagedata/flores_plus",
                dataset_name=f"FLORES dev, {language.name}", dataset_config=language.flores_plus, dataset_split="dev",
                metric_type=kind, metric_name=name, metric_value=round(value, 5),
            )  # fmt: skip


def _tasks_as_results(published: Published) -> Iterator[EvalResult]:
    for name, task in published.evaluation.get("tasks", {}).items():
        if "adapted" in task:
            yield EvalResult(
                task_type="text-generation", dataset_type=name, dataset_name=name, metric_type=task["metric"],
                metric_name=task["metric"], metric_value=round(task["adapted"], 5),
            )  # fmt: skip


def _after(published: Published) -> dict[str, list[float]]:
    """Returns the losses on FLORES dev after training; of several runs that were stacked there are none."""
    return dict(published.about.get("figures", {}).get("after", {}))


def _opening(published: Published) -> str:
    what = {
        "delta": "the new vectors of the neurons that speak the language",
        "lora": "the change of the neurons that speak the language, as an exact LoRA",
        "hf": "a whole model",
        "gguf": "a whole model, as llama.cpp reads it",
    }[published.form]
    method = published.about.get("method")
    made = f", method `{method}`" if method else ""
    only = " Every weight but those of the trained neurons is the base's, bit for bit." if published.per_layer else ""
    return f"This is {what}. It was trained by Neuroglot {__version__}{made} (arXiv 2510.13580).{only}"


def _loading(published: Published) -> str:
    return _LOADING[published.form].format(base=published.base or "THE BASE", repository=published.repository)


def _figures(published: Published) -> Iterator[str]:
    before, after = published.about.get("figures", {}).get("before", {}), _after(published)
    if after:
        yield "| FLORES dev | nats per token, base | here | bits per byte, base | here |\n|" + " --- |" * 5
    for code, (loss, bits) in after.items():
        old = [f"{value:.4f}" for value in before[code]] if code in before else ["", ""]
        yield f"| {find_language(code).name} | {old[0]} | {loss:.4f} | {old[1]} | {bits:.4f} |"
    tasks = {name: task for name, task in published.evaluation.get("tasks", {}).items() if "adapted" in task}
    if tasks:
        yield "\n| task | metric | base | here |\n| --- | --- | --- | --- |"
    for name, task in tasks.items():
        base = f"{task['base']:.4f}" if "base" in task else ""
        yield f"| {name} | {task['metric']} | {base} | {task['adapted']:.4f} |"


def _samples(samples: Sequence[Mapping[str, str]]) -> str:
    if not samples:
        return ""
    rows = (f"| {_plain(each['prompt'])} | {_plain(each['base'])} | {_plain(each['adapted'])} |" for each in samples)
    about = "Beginnings of FLORES devtest sentences, continued greedily:"
    head = (about, "", "| beginning | base | here |", "|" + 3 * " --- |")
    return "\n".join([*head, *rows])


def _plain(text: str) -> str:
    """Returns text as Markdown shows it, on one line: nothing in it is a link, a tag or the end of a cell."""
    return re.sub(r"([\\`*_{}\[\]()#!|~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _neuron_map(per_layer: Sequence[int] | None) -> str:
    if not per_layer:
        return ""
    rows = "\n".join(f"| {layer} | {neurons} |" for layer, neurons in enumerate(per_layer) if neurons)
    return f"{sum(per_layer)} neurons of the FFNs:\n\n| layer | neurons |\n| --- | --- |\n{rows}"


def _text(published: Published) -> Iterator[str]:
    named = ", ".join(f"`{published.base_card[key]}`" for key in _LICENCE if published.base_card.get(key))
    yield f"- Weights: the licence of the base{f', {named}' if named else ', which its own card names'}."
    seen = set()
    for text in published.about.get("text", []):
        line = f"- {find_language(text['language']).name}: {text['data_set']}, {text['licence']}."
        if line not in seen:
            seen.add(line)
            yield line


def _limits(published: Published) -> str:
    return (
        f"It is for writing and understanding {published.names} by a base model: it continues text and was not taught "
        "to follow instructions here. What the base says wrongly or unfairly, it may say in this language, too; the "
        "text of the web that it read was not checked by people. FLORES, by which it was measured, was not trained on; "
        "SIB-200 and Belebele are made of the same sentences."
    )


def is_hub_name(name: object) -> bool:
    """Tells whether a data set or base is named as the hub names them, and not by a path.

    >>> is_hub_name("cis-lmu/GlotCC-V1"), is_hub_name("/data/text"), is_hub_name("files in ./a"), is_hub_name("a/b/c")
    (True, False, False, False)
    """
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None

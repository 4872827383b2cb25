"""What a run will take, as data."""

from dataclasses import asdict, dataclass, field

from datamodules.examination import Fertility
from datamodules.supply import Supply
from lightning_app.files import JSON
from lightning_app.identity import ModelIdentity
from lightning_app.planning.memory import Batches, Memory

_GIB = 2**30


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of one process.

    Attributes:
        sizes: Tensors by kind, in bytes.
        batches: Sequences and tokens per sequence of every phase.
        peak_gib: The most that the process takes.
        smallest_card_gb: Of common GPUs, the smallest that it fits; None where it fits none.
        device: What it would run on.
        device_gib: How much that has.
        advice: The keys that make it fit, or that none does; None where it fits.
    """

    sizes: Memory
    batches: Batches
    peak_gib: float
    smallest_card_gb: int | None
    device: str
    device_gib: float
    advice: str | None


@dataclass(frozen=True)
class TimePlan:
    """Tokens to go through, and the seconds of every phase at the limit of frozen training, by device."""

    tokens: int
    profiled_tokens: int
    limit_s: dict[str, dict[str, float]]


@dataclass(frozen=True)
class DiskPlan:
    """Bytes to write and to download, and the disks that are too small; None where a size is unknown."""

    token_cache_bytes: int
    checkpoints_bytes: int
    base_bytes: int | None
    base_download_bytes: int | None
    text_download_bytes: int
    flores_to_download: list[str]
    free_bytes: int
    too_small: list[str]


@dataclass(frozen=True)
class TaskPlan:
    """What a task of an evaluation takes.

    Attributes:
        task: Its name.
        items: How many it has.
        sequences: That run through the model.
        tokens: In all of them, answers left out.
        answer_tokens: That an answer has at most; 0 where none is generated.
        is_from_data: Whether this was counted on the data, else it is from the known size of the data set.
        limit_s: Seconds at the limit, by device.
        why_not: Why it would be left out.
    """

    task: str
    items: int = 0
    sequences: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    is_from_data: bool = True
    limit_s: dict[str, float] = field(default_factory=dict)
    why_not: str = ""


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation takes, of one model; base and adapted model take twice that.

    Attributes:
        tasks: One by one.
        limit_s: Seconds of all tasks at the limit, by device.
        batch: Sequences, and tokens per sequence, of the batch on this device that takes the most memory.
        batch_gib: What that takes beside the weights.
        weights_gib: What they take.
    """

    tasks: list[TaskPlan]
    limit_s: dict[str, float]
    batch: tuple[int, int]
    batch_gib: float
    weights_gib: float


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        model: The base.
        language: Target, for people.
        trained_parameters: Numbers that training may change.
        neurons: How many neurons are trained; None where what is trained is not said by neurons.
        neurons_from: How that is known.
        fertility: How the tokenizer cuts the target, None where FLORES is not on this machine.
        text: Of training; empty where the tokenizer is still to be trained.
        profiling_text: Of the languages that are still to be counted.
        memory: Of one process.
        time: Of the whole run.
        disk: Of the whole run.
        evaluation: Of the adapted model beside its base, where that was asked for.
    """

    model: ModelIdentity
    language: str
    trained_parameters: int
    neurons: int | None
    neurons_from: str
    fertility: Fertility | None
    text: list[Supply]
    profiling_text: list[Supply]
    memory: MemoryPlan
    time: TimePlan
    disk: DiskPlan
    evaluation: EvaluationPlan | None = None

    def as_json(self) -> JSON:
        """Returns the plan as plain data."""
        plain = asdict(self)
        for key, supplies in (("text", self.text), ("profiling_text", self.profiling_text)):
            for row, supply in zip(plain[key], supplies, strict=True):
                row["language"] = str(supply.language)
        sizes = plain["memory"].pop("sizes")
        plain["memory"] |= {f"{kind}_gib": size / _GIB for kind, size in sizes.items()}
        return plain

"""Figures of translations as a corpus: sacrebleu's BLEU, chrF++ and spBLEU, with their signatures."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest, Result
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
from sacrebleu.utils import SACREBLEU_DIR

from lightning_app.errors import UserError
from lightning_app.evaluation.scores import Metric, Scores
from lightning_app.files import one_line, replacing
from lightning_app.hub import download

CORPUS_METRICS = ("bleu", "chrf++", "spbleu")
"""Metrics that are of a whole corpus, not the mean of its sentences'."""

_SPM = "flores200"


def corpus_metric(name: str) -> BLEU | CHRF:
    """Returns sacrebleu's metric for one of `CORPUS_METRICS`, or for ``sentence_bleu``."""
    if name == "chrf++":
        return CHRF(word_order=2)
    if name == "sentence_bleu":
        return BLEU(effective_order=True)
    return BLEU(tokenize=_SPM) if name == "spbleu" else BLEU()


def corpus_value(name: str, said: list[str], references: list[str]) -> float:
    """Returns one of `CORPUS_METRICS`."""
    return float(corpus_metric(name).corpus_score(said, [references]).score)


def signature(name: str) -> str:
    """Returns what sacrebleu says of how a metric is computed."""
    metric = corpus_metric(name)
    metric.corpus_score(["a"], [["a"]])  # the signature tells the number of references only then
    return str(metric.get_signature())


def sign_translation(scores: Scores) -> Scores:
    """Returns scores of one of our translation tasks with signatures, and with spBLEU or why it is left out.

    Scores that were kept without spBLEU get it from their answers as soon as it can be computed. Others are as they
    were.
    """
    if "sentence_bleu" not in scores.metrics:
        return scores
    metrics, why = dict(scores.metrics), why_no_spbleu()
    answers = [answer.strip() for answer in scores.answers]
    if why:
        metrics.pop("spbleu", None)
    elif "spbleu" not in metrics:
        metrics["spbleu"] = Metric(corpus_value("spbleu", answers, scores.expected))
    metrics = {
        name: metric if metric.signature else replace(metric, signature=signature(name))
        for name, metric in metrics.items()
    }
    return replace(scores, metrics=metrics, answers=answers, left_out={"spbleu": why} if why else {})


def corpus_p(name: str, base: list[str], adapted: list[str], references: list[str]) -> float:
    """Returns the p-value of sacrebleu's paired bootstrap test between two models' translations."""
    systems: list[tuple[str, Sequence[str]]] = [("base", base), ("adapted", adapted)]
    _, scores = PairedTest(systems, {name: corpus_metric(name)}, [references], test_type="bs")()
    (result,) = (found[1] for key, found in scores.items() if key != "System")
    return float(result.p_value) if isinstance(result, Result) and result.p_value is not None else 1.0


@cache
def why_no_spbleu() -> str:
    """Returns why spBLEU cannot be computed here, or an empty string; downloads its tokenizer's model the first time.

    sacrebleu would leave half a file where it is killed, and take that for whole ever after.
    """
    url = SPM_MODELS[_SPM]["url"]
    path = Path(SACREBLEU_DIR) / "models" / Path(url).name
    try:
        import sentencepiece  # noqa: F401
    except ImportError:
        return "the package sentencepiece is not installed; pip install sentencepiece"
    try:
        if not path.is_file() or not path.stat().st_size:
            with replacing(path) as temporary:
                download(url, temporary, f"run again with a network, or put sacrebleu's {_SPM} model at {path}")
        corpus_metric("spbleu").corpus_score(["a"], [["a"]])
    except (UserError, OSError) as error:
        return one_line(error)
    except RuntimeError as error:
        return f"{path} is no tokenizer model ({one_line(error)}); delete it"
    return ""

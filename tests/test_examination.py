"""What is said of a text before it is trained on, against plain counts."""

import json
import random

import numpy as np
import pytest

from datamodules.examination import examine, fertility_of
from datamodules.flores import read_flores
from datamodules.held_out import HeldOutText
from datamodules.sources import open_source
from lightning_app.cli import main
from lightning_app.languages import find_language
from tests.faults import refused
from tests.test_filters import noisy_rows, parquet
from tests.tokenizer_kinds import TEXTS, made

WELSH, ENGLISH, CHINESE = (find_language(code) for code in ("cy", "en", "zh"))


@pytest.mark.parametrize("kind", ["byte-level", "unigram"])
def test_fertility_is_counted_as_by_hand(kind):
    tokenizer = made(kind)
    sentences, other = [*TEXTS[:20], "\N{SNOWMAN}\N{GRINNING FACE}"], TEXTS[20:41]
    found = fertility_of(tokenizer, WELSH, sentences, other)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in sentences]
    count = sum(map(len, ids))
    assert found.tokens_per_word == count / sum(len(text.split()) for text in sentences)
    assert found.bytes_per_token == len("".join(sentences).encode()) / count
    assert found.times_other == count / sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in other)
    broken = [each for text in ids for each in text if "\ufffd" in tokenizer.decode([each])]
    assert found.fallback == len(broken) / count
    assert fertility_of(tokenizer, CHINESE, sentences).tokens_per_word is None


def test_a_report_says_what_a_naive_look_finds(tmp_path):
    rows, _, flores = noisy_rows(random.Random(5))
    source = parquet(tmp_path / "text.parquet", rows)
    parts = {"dev": flores[:2], "devtest": [*flores[2:], " ".join("abcdefghijklmnopqrst")]}
    report = examine(source, {split: HeldOutText(part, "Latn") for split, part in parts.items()}, has_near=True)
    texts = [row["content"] for row in rows]
    folded = [" ".join(text.split()) for text in texts]
    assert (report.documents, report.is_whole) == (len(rows), True)
    assert report.text_bytes == sum(len(text.encode()) for text in texts)
    assert report.lengths == [round(each) for each in np.quantile([len(text) for text in texts], (0.1, 0.5, 0.9))]
    assert report.warnings == {kind: sum(kind in row["quality-warnings"] for row in rows) for kind in report.warnings}
    assert set(report.warnings) == {"noisy", "tiny", "header"}
    assert report.certainty == [
        0.2,
        pytest.approx(np.median([r for r in (row["identification-prob"] for row in rows) if r])),
        0.95,
    ]
    assert report.documents_holding == sum(any(sentence in text for sentence in flores) for text in folded)
    assert report.held_out == {"dev": 1.0, "devtest": 24 / 32}
    assert report.exact_duplicates == len(rows) - len(set(folded))
    assert report.near_duplicates >= report.exact_duplicates
    first = examine(source, {}, most=700)
    assert (first.documents, first.is_whole, first.near_duplicates) == (700, False, None)
    assert first.text_bytes == sum(len(text.encode()) for text in texts[:700])


def test_the_text_of_a_language_is_told_on_the_command_line(workplace, capsys, tmp_path):
    keys = [f"--data.source={workplace.hub}", f"--data.flores={workplace.hub}", "--language=qah-Deva", "--documents=40"]
    base = f"--model.base={workplace.folder / 'runs/base/model'}"
    assert main(["analyze", "--text", *keys, base, f"--out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "documents   40, the first of more" in said
    assert "tokens a word" in said
    found = json.loads((tmp_path / "text.json").read_text())["qah-Deva"]
    assert found["text"]["documents"] == 40
    assert found["fertility"]["bytes_per_token"] > 1
    refused(capsys, ["analyze", "--text", *keys[:2]], "no language whose text to look at")
    refused(capsys, ["analyze", "--text", *keys[:3], "--documents=0"], "--documents is 0")


def test_real_text_holds_what_was_planted(shared, tmp_path):
    """Welsh of the local hub: no FLORES in it, until some is put there; a repeated document is a near duplicate."""
    root = str(shared / "data" / "hub")
    sentences = read_flores(root, WELSH, "dev", tmp_path, "keep")
    documents = [text for texts, _ in open_source(root, WELSH, "main").batches(None) for text in texts]
    held_out = {"dev": HeldOutText(sentences, WELSH.script)}
    clean = examine(parquet(tmp_path / "clean.parquet", [{"content": text} for text in documents]), held_out)
    assert (clean.documents_holding, clean.held_out) == (0, {"dev": 0.0})
    planted = [*documents[:200], *(f"{documents[n]} {sentences[n]}" for n in range(50)), *documents[300:305] * 2]
    longest = max(range(200), key=lambda n: len(documents[n]))
    planted.append(documents[longest].replace(documents[longest].split()[40], "arall", 1))
    report = examine(parquet(tmp_path / "p.parquet", [{"content": t} for t in planted]), held_out, has_near=True)
    long_enough = [n for n in range(50) if HeldOutText([sentences[n]], "Latn")]
    assert report.documents_holding == len(long_enough) > 40
    assert [each["document"] for each in report.holding] == [200 + n for n in long_enough]
    assert report.exact_duplicates == 5
    assert report.near_duplicates > report.exact_duplicates

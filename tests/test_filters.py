"""Documents that are left out of a training text: those of the evaluation, of bad quality, and repeated ones."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.corpus import Corpus
from datamodules.filters import FilteredSource, Repeated, TextFilters
from datamodules.flores import read_flores
from datamodules.held_out import WORDS, HeldOutText
from datamodules.shares import Share
from datamodules.sources import FileSource
from lightning_app.languages import find_language
from tests.faults import refusal
from tests.tokenizer_kinds import all_of, made

WELSH = find_language("cy")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words_of(generator, count, vocabulary=12):
    return [generator.choice(LETTERS[:vocabulary]) * generator.randint(1, 2) for _ in range(count)]


def parquet(path, rows):
    names = ("content", "quality-warnings", "identification-prob")
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path, row_group_size=300)
    return FileSource([path], WELSH.glotcc)


def kept_of(source, position=None):
    return [text for texts, _ in source.batches(position) for text in texts]


@pytest.mark.parametrize("seed", range(20))
def test_runs_of_words_are_found_as_a_naive_search_finds_them(seed):
    generator = random.Random(seed)
    sentences = [words_of(generator, generator.randint(5, 30), 3) for _ in range(20)]
    held_out = HeldOutText(map(" ".join, sentences), "Latn")
    documents = [words_of(generator, generator.randint(0, 60), 3) for _ in range(15)]
    documents += [[*words_of(generator, 5), *sentence[:WORDS], "end"] for sentence in sentences]

    def runs(words, length):
        return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}

    known = {}
    for sentence in sentences:
        if len(sentence) >= 8:
            length = min(len(sentence), WORDS)
            known.setdefault(length, set()).update(runs(sentence, length))
    expected = [sum(len(runs(words, length) & of_length) for length, of_length in known.items()) for words in documents]
    assert [len(found) for found in held_out.found(list(map(" ".join, documents)))] == expected
    assert held_out.grams == sum(map(len, known.values()))
    assert any(expected)


def test_case_punctuation_and_forms_do_not_hide_a_sentence():
    words = "One two three four five six seven eight nine ten eleven twelve fifth"
    held_out = HeldOutText([words], "Latn")
    hidden = "(Before) ONE two: three four—five six, seven eight nine ten “eleven” twelve ﬁfth! after"
    found = held_out.found([hidden, hidden.replace("six", "sixth"), "", words.replace("fifth", "")])
    assert list(map(bool, found)) == [True, False, False, False]


def test_scripts_without_spaces_are_compared_by_characters():
    sentence = "".join(chr(0x4E00 + place) for place in range(40))
    held_out = HeldOutText([sentence], "Hans")
    assert held_out.found([f"，{sentence[5:31]}。"])[0]
    assert not held_out.found([sentence[5:30]])[0]


def noisy_rows(generator):
    flores = [" ".join(words_of(generator, 20, 26)) for _ in range(5)]
    rows = []
    for _ in range(1500):
        row = {"content": " ".join(words_of(generator, 30, 26))}
        row["quality-warnings"] = generator.choice([[], ["noisy"], ["tiny", "header"]])
        row["identification-prob"] = generator.choice([None, 0.2, 0.95])
        kind = generator.random()
        if kind < 0.1:
            row["content"] += f" {generator.choice(flores)}"
        elif kind < 0.2 and rows:
            row["content"] = generator.choice(rows)["content"].replace(" ", "  ", 3)
        rows.append(row)
    return rows, HeldOutText(flores, "Latn"), flores


def test_each_document_goes_for_its_first_reason(tmp_path):
    rows, held_out, flores = noisy_rows(random.Random(0))
    source = parquet(tmp_path / "text.parquet", rows)
    filters = TextFilters(warnings=("tiny",), confidence=0.5, duplicates="exact")
    kept, dropped, seen = [], {}, set()
    for row in rows:
        folded = " ".join(row["content"].split())
        reason = None
        if "tiny" in row["quality-warnings"]:
            reason = "quality warning"
        elif row["identification-prob"] == 0.2:
            reason = "language uncertain"
        elif any(sentence in folded for sentence in flores):
            reason = "holds FLORES"
        elif folded in seen:
            reason = "duplicate"
        if reason is None:
            kept.append(row["content"])
            seen.add(folded)
        else:
            dropped[reason] = dropped.get(reason, 0) + 1
    found = list(filters.on(source, lambda: held_out).batches(None))
    assert [text for texts, _ in found for text in texts] == kept
    assert found[-1][1]["dropped"] == dropped
    assert len(dropped) == 4
    assert len(found[-1][1]["listed"]) == 100


@pytest.mark.parametrize("duplicates", ["keep", "exact", "near"])
def test_a_text_that_is_read_on_from_any_position_is_the_same(duplicates, tmp_path):
    rows, held_out, _ = noisy_rows(random.Random(1))
    source = parquet(tmp_path / "text.parquet", rows)
    filters = TextFilters(warnings=("tiny",), duplicates=duplicates)
    whole = list(filters.on(source, lambda: held_out).batches(None))
    for number, (_, position) in enumerate(whole):
        rest = list(filters.on(source, lambda: held_out).batches(position))
        assert rest == whole[number + 1 :]


def test_near_duplicates_are_those_whose_fives_are_alike():
    generator = random.Random(2)
    base = words_of(generator, 200, 26)
    changed = {share: base.copy() for share in (0.01, 0.3)}
    for share, words in changed.items():
        for place in generator.sample(range(200), int(200 * share)):
            words[place] = "changed"
    documents = [base, changed[0.01], changed[0.3], words_of(generator, 200, 26), base]
    drops = Repeated("near").drops([{"content": " ".join(words)} for words in documents])
    assert drops == [False, True, False, False, True]
    assert Repeated("exact").drops([{"content": " ".join(words)} for words in documents]) == [
        False, False, False, False, True,
    ]  # fmt: skip


def test_what_is_left_out_is_a_part_of_what_a_cache_is(tmp_path):
    """A text of its own for each way to leave out; profiling reads all of it; a second look finds the first cache."""
    rows, held_out, _ = noisy_rows(random.Random(3))
    path = tmp_path / "text.parquet"
    parquet(path, rows)
    tokenizer = made("byte-level")

    def corpus(filters):
        made_of = Corpus("unused", "main", tmp_path / "cache", None, files={WELSH.glotcc: str(path)})
        made_of.__dict__["tokenizer"] = tokenizer
        made_of.shares, made_of.filters = [Share(WELSH, 1.0)], filters
        made_of.held_out = lambda language: held_out
        return made_of

    ids = set()
    for filters in (TextFilters("keep"), TextFilters(), TextFilters(warnings=("tiny",))):
        blocks, cache = corpus(filters).training_blocks(WELSH, 10**9, "packed", 64)
        again, same = corpus(filters).training_blocks(WELSH, 10**9, "packed", 64)
        assert all_of(blocks) == all_of(again)
        assert cache.id == same.id
        assert cache.documents + sum(cache.left_out.values()) == len(rows)
        ids.add(cache.id)
        assert corpus(filters).supply(WELSH, 10, is_trained=True).cached == cache.tokens
    assert len(ids) == 3
    unfiltered = corpus(TextFilters()).fill(WELSH, 10**9, "plain", 64)
    assert unfiltered.documents == len(rows)
    assert not unfiltered.left_out


def test_planted_sentences_are_found_in_real_text(shared, tmp_path):
    root = shared / "data" / "hub"
    sentences = read_flores(str(root), WELSH, "devtest", tmp_path, "keep")
    files = sorted((root / "cis-lmu/GlotCC-V1/v1.0/cym-Latn").glob("*.parquet"))
    documents = kept_of(FileSource(files, WELSH.glotcc))
    planted = {7: sentences[3], 100: sentences[10].upper(), 555: sentences[500]}
    rows = [{"content": f"{text} {planted.get(number, '')}"} for number, text in enumerate(documents)]
    held_out = HeldOutText(sentences, WELSH.script)
    source = TextFilters().on(parquet(tmp_path / "planted.parquet", rows), lambda: held_out)
    assert isinstance(source, FilteredSource)
    *_, (_, position) = source.batches(None)
    assert [each["document"] for each in position["listed"]] == sorted(planted)
    assert position["dropped"] == {"holds FLORES": len(planted)}


def test_a_confidence_beyond_one_is_refused():
    with refusal("--data.filters.confidence is 90"):
        TextFilters(confidence=90)

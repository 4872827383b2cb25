"""Properties of the invented languages and of the hub folder they are written to."""

import hashlib
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import combinations, pairwise
from math import sqrt
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datamodules.invented import (
    CONCEPTS,
    LANGUAGES,
    documents,
    main,
    parallel_meanings,
    parallel_sentences,
    write_hub,
)

ROOT = Path(__file__).resolve().parents[1]
SCRIPT_NAMES = {"Latn": "LATIN", "Cyrl": "CYRILLIC", "Grek": "GREEK", "Geor": "GEORGIAN", "Deva": "DEVANAGARI"}
GLOTCC_COLUMNS = (
    dict.fromkeys(("content", "warc-target-uri", "warc-date", "warc-record-id"), "string")
    | dict.fromkeys(("quality-warnings", "categories"), "list<element: string>")
    | {"identification-language": "string"}
    | dict.fromkeys(("identification-prob", "identification-consistency", "script-percentage"), "double")
    | {"num-sents": "int64", "content-length": "int64", "tlsh": "string"}
)
FLORES_COLUMNS = {"id": "int64"} | dict.fromkeys(
    ("iso_639_3", "iso_15924", "glottocode", "text", "url", "domain", "topic")
    + ("has_image", "has_hyperlink", "last_updated"),
    "string",
)
DEV, DEVTEST = 60, 40


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small hub, with enough documents in qaa-Latn for several row groups."""
    root = tmp_path_factory.mktemp("hub")
    sizes = {code: 0.5 if code == "qaa-Latn" else 0.1 for code in LANGUAGES}
    write_hub(root, megabytes=sizes, dev=DEV, devtest=DEVTEST, seed=3)
    return root


def glotcc_file(root: Path, code: str) -> pq.ParquetFile:
    return pq.ParquetFile(root / "cis-lmu/GlotCC-V1/v1.0" / code / f"{code}_0.parquet")


def flores_texts(root: Path, split: str, code: str) -> list[str]:
    path = root / "openlanguagedata/flores_plus" / split / f"{code.replace('-', '_')}.parquet"
    return pq.ParquetFile(path).read(["text"])["text"].to_pylist()


def column_types(file: pq.ParquetFile) -> dict[str, str]:
    return {field.name: str(field.type) for field in file.schema_arrow}


def digest(root: Path) -> str:
    """Digest of the names and bytes of all files below a folder."""
    total = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()


def trigram_cosine(a: str, b: str) -> float:
    x, y = (Counter(text[i : i + 3] for i in range(len(text) - 2)) for text in (a, b))
    return sum(x[gram] * y[gram] for gram in x) / sqrt(sum(n * n for n in x.values()) * sum(n * n for n in y.values()))


def test_there_are_eight_languages_in_five_scripts():
    assert [code[:3] for code in LANGUAGES] == ["qaa", "qab", "qac", "qad", "qae", "qaf", "qag", "qah"]
    assert {code[4:] for code in LANGUAGES} == set(SCRIPT_NAMES)
    assert len({language.order for language in LANGUAGES.values()}) == len(LANGUAGES)


def test_same_seed_gives_the_same_text_and_another_seed_does_not():
    language = LANGUAGES["qaa-Latn"]
    assert parallel_sentences(50, 7) == parallel_sentences(50, 7)
    assert parallel_sentences(50, 7) != parallel_sentences(50, 8)
    assert list(documents(language, 0.02, 7)) == list(documents(language, 0.02, 7))
    assert list(documents(language, 0.02, 7)) != list(documents(language, 0.02, 8))


def test_files_do_not_depend_on_the_hash_seed(tmp_path: Path):
    digests = set()
    for hash_seed in ("0", "1"):
        out = tmp_path / hash_seed
        command = [sys.executable, "-m", "datamodules.invented", str(out), "--megabytes", "0.02", "--seed", "5"]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert len(result.stdout.splitlines()) == 1
        assert str(out) in result.stdout
        digests.add(digest(out))
    write_hub(tmp_path / "here", megabytes=0.02, seed=5)
    assert digests == {digest(tmp_path / "here")}


def test_smaller_amounts_are_prefixes_of_larger_ones():
    language = LANGUAGES["qah-Deva"]
    small, large = list(documents(language, 0.01)), list(documents(language, 0.03))
    assert large[: len(small)] == small
    assert parallel_meanings(40)[:25] == parallel_meanings(25)


@pytest.mark.parametrize("code", LANGUAGES)
def test_documents_stop_at_the_size_asked_for(code: str):
    texts = list(documents(LANGUAGES[code], 0.05))
    sizes = [len(text.encode()) for text in texts]
    assert sum(sizes[:-1]) < 50_000 <= sum(sizes)
    stop = LANGUAGES[code].stop
    for text in texts:
        paragraphs = text.split("\n")
        assert 5 <= text.count(stop) <= 15
        assert all(paragraph.endswith(stop) and paragraph == paragraph.strip() for paragraph in paragraphs)
        assert "  " not in text


def test_parallel_sentences_are_aligned():
    """The roots of a meaning stand in its own sentence of every language, and hardly ever in the next one."""
    meanings, sentences = parallel_meanings(80, 1), parallel_sentences(80, 1)
    for code, texts in sentences.items():
        assert len(texts) == len(set(texts)) == 80
        own, next_one, looked_for = 0, 0, 0
        for meaning, text, next_text in zip(meanings[:-1], texts[:-1], texts[1:], strict=True):
            agent, verb = meaning[0].agent.noun, meaning[0].verb
            # An affix may change the last sound of a root, and one or two letters occur anywhere.
            roots = [LANGUAGES[code].word(kind, i)[:-1] for kind, i in (("noun", agent), ("verb", verb))]
            roots = [root for root in roots if len(root) > 2]
            looked_for += len(roots)
            own += sum(root in text.lower() for root in roots)
            next_one += sum(root in next_text.lower() for root in roots)
        assert own == looked_for > 40
        assert next_one < looked_for / 5


@pytest.mark.parametrize("code", LANGUAGES)
def test_letters_belong_to_the_script_of_the_language(code: str):
    text = "".join(documents(LANGUAGES[code], 0.05)) + "".join(parallel_sentences(50)[code])
    letters = {char for char in text if unicodedata.category(char)[0] in "LM"}
    assert len(letters) > 12
    assert {unicodedata.name(letter).split()[0] for letter in letters} == {SCRIPT_NAMES[code[4:]]}
    others = {char for char in text if unicodedata.category(char)[0] not in "LM"}
    assert others <= set(" \n.,·।")


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_concept_has_a_word_of_its_own(code: str):
    words = [LANGUAGES[code].word(kind, i) for kind, count in CONCEPTS.items() for i in range(count)]
    assert len(set(words)) == sum(CONCEPTS.values())


def test_devanagari_signs_follow_consonants():
    text = "".join(documents(LANGUAGES["qah-Deva"], 0.1))
    for before, char in pairwise(text):
        if unicodedata.category(char)[0] == "M":
            assert unicodedata.name(before).startswith("DEVANAGARI LETTER")
            assert before not in "अआइईउएओ"


def test_georgian_sentences_start_without_capitals_and_greek_words_end_in_final_sigma():
    georgian, greek = (" ".join(documents(LANGUAGES[code], 0.05)) for code in ("qag-Geor", "qaf-Grek"))
    assert "MTAVRULI" not in " ".join(unicodedata.name(char, "") for char in set(georgian))
    assert "ς" in greek
    assert not any(word.strip(".·").endswith("\N{GREEK SMALL LETTER SIGMA}") for word in greek.split())
    assert not any("ς" in word.strip(".·")[:-1] for word in greek.split())


def test_related_languages_share_more_trigrams_than_unrelated_ones_but_differ():
    text = {code: " ".join(documents(language, 0.1)) for code, language in LANGUAGES.items()}
    latin = {pair: trigram_cosine(*(text[code] for code in pair)) for pair in combinations(LANGUAGES, 2)}
    related = latin["qaa-Latn", "qab-Latn"]
    assert related > 2 * max(latin["qaa-Latn", "qac-Latn"], latin["qab-Latn", "qac-Latn"])
    assert 0.2 < related < 0.9
    assert 0.2 < latin["qad-Cyrl", "qae-Cyrl"] < 0.9
    assert parallel_sentences(1)["qaa-Latn"] != parallel_sentences(1)["qab-Latn"]


def test_frequent_concepts_dominate_and_documents_keep_to_a_topic():
    """Zipf: the commonest tenth of the words makes up over a third of the text. Topic: a document repeats its words."""
    texts = list(documents(LANGUAGES["qac-Latn"], 0.2))
    counts = sorted(Counter(" ".join(texts).lower().split()).values(), reverse=True)
    assert sum(counts[: len(counts) // 10]) > sum(counts) / 3
    halves = [text.lower().split() for text in texts]
    own = [len(set(w[: len(w) // 2]) & set(w[len(w) // 2 :])) for w in halves]
    other = [len(set(a[: len(a) // 2]) & set(b[len(b) // 2 :])) for a, b in pairwise(halves)]
    assert sum(own) / len(own) > 1.5 * sum(other) / len(other)


def test_dev_and_devtest_are_disjoint_and_absent_from_documents(hub: Path):
    for code in LANGUAGES:
        dev, devtest = flores_texts(hub, "dev", code), flores_texts(hub, "devtest", code)
        assert (len(dev), len(devtest)) == (DEV, DEVTEST)
        assert len({*dev, *devtest}) == DEV + DEVTEST
        corpus = "\n".join(glotcc_file(hub, code).read(["content"])["content"].to_pylist())
        assert not [sentence for sentence in (*dev, *devtest) if sentence in corpus]


def test_held_out_sentences_would_occur_in_documents_if_they_were_not_kept_out():
    held_out, language = parallel_meanings(2_000, 0), LANGUAGES["qac-Latn"]
    sentences = {language.render(meaning) for meaning in held_out}

    def said(texts: Iterable[str]) -> set[str]:
        return {f"{sentence}." for text in texts for sentence in re.split(r"\.\s?", text)}

    assert sentences & said(documents(language, 1.0, 0))
    assert not sentences & said(documents(language, 1.0, 0, held_out))


def test_glotcc_files_have_the_columns_of_the_hub_in_small_row_groups(hub: Path):
    file = glotcc_file(hub, "qaa-Latn")
    assert column_types(file) == GLOTCC_COLUMNS
    assert list(column_types(file)) == list(GLOTCC_COLUMNS)
    rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert len(rows) > 1
    assert set(rows[:-1]) == {250}
    for row in file.read().to_pylist():
        filled = {name for name, value in row.items() if value is not None}
        assert filled == {"content", "num-sents", "content-length"}
        assert row["content-length"] == len(row["content"])
        assert row["num-sents"] == row["content"].count(".")


def test_flores_files_have_the_columns_of_the_hub_and_parallel_ids(hub: Path):
    for code in LANGUAGES:
        for split, count in (("dev", DEV), ("devtest", DEVTEST)):
            name = code.replace("-", "_")
            file = pq.ParquetFile(hub / "openlanguagedata/flores_plus" / split / f"{name}.parquet")
            assert column_types(file) == FLORES_COLUMNS
            assert list(column_types(file)) == list(FLORES_COLUMNS)
            table = file.read()
            assert table["id"].to_pylist() == list(range(1, count + 1))
            assert set(table["iso_639_3"].to_pylist()) == {code[:3]}
            assert set(table["iso_15924"].to_pylist()) == {code[4:]}
    both = flores_texts(hub, "dev", "qag-Geor") + flores_texts(hub, "devtest", "qag-Geor")
    assert both == parallel_sentences(DEV + DEVTEST, 3)["qag-Geor"]


def test_cards_name_every_file_written(hub: Path):
    yaml = pytest.importorskip("yaml")
    for dataset in ("cis-lmu/GlotCC-V1", "openlanguagedata/flores_plus"):
        folder = hub / dataset
        named = set()
        for config in yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])["configs"]:
            files = config["data_files"]
            for pattern in [files] if isinstance(files, str) else [file["path"] for file in files]:
                named |= set(folder.glob(pattern))
        assert named == set(folder.rglob("*.parquet"))
        assert len(named) == len(LANGUAGES) * (1 if "GlotCC" in dataset else 2)
    assert not list(hub.rglob("*.tmp"))


def test_the_ordinary_loader_reads_the_folder(hub: Path, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    cache = str(tmp_path)
    glotcc = datasets.load_dataset(str(hub / "cis-lmu/GlotCC-V1"), "qad-Cyrl", split="train", cache_dir=cache)
    assert glotcc.column_names == list(GLOTCC_COLUMNS)
    flores = datasets.load_dataset(str(hub / "openlanguagedata/flores_plus"), "qad_Cyrl", cache_dir=cache)
    assert {split: rows.num_rows for split, rows in flores.items()} == {"dev": DEV, "devtest": DEVTEST}


def test_languages_left_out_of_the_sizes_get_no_documents(tmp_path: Path):
    write_hub(tmp_path, megabytes={"qac-Latn": 0.01}, dev=2, devtest=0)
    assert [path.name for path in (tmp_path / "cis-lmu/GlotCC-V1").rglob("*.parquet")] == ["qac-Latn_0.parquet"]
    assert len(flores_texts(tmp_path, "dev", "qah-Deva")) == 2
    assert flores_texts(tmp_path, "devtest", "qah-Deva") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"megabytes": {"eng-Latn": 1.0}}, "eng-Latn"),
        ({"megabytes": 0.0}, "above 0"),
        ({"megabytes": float("inf")}, "inf"),
        ({"dev": -1}, "dev is -1"),
        ({"devtest": 10**6}, "devtest 1000000"),
    ],
)
def test_bad_sizes_are_refused_before_anything_is_written(tmp_path: Path, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        write_hub(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_command_line_refuses_bad_input_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--megabytes", "-1"])
    assert stopped.value.code == 2
    assert "above 0" in capsys.readouterr().err

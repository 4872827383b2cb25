"""The sheet of paired answers for native speakers: blind, self-contained, and counted exactly when it is back."""

import csv
import html.parser
import io
import json
import math
import re
from itertools import product

import pytest

from lightning_app.cli import main
from lightning_app.evaluation.judged_sheets import Key, read_judged
from lightning_app.evaluation.preferences import Agreement, Answers, Tally, blind_pairs, by_majority, exact_interval
from lightning_app.languages import find_language, known_languages
from lightning_app.reports.sheet import sheet_csv, sheet_html, sheet_key
from tests.faults import fault, refused

ANSWERS = [Answers(f"prompt {number}", f"base {number}", f"adapted {number}") for number in range(20)]
NASTY = [
    "</script><script>alert(1)</script>", '"><img src=http://x/y onerror=alert(1)>', "=1+1", 'a,b;\t"c"\n\nd', "&amp;",
]  # fmt: skip


class Page(html.parser.HTMLParser):
    """What a browser sees of a page: elements with attributes, and the text of those of class text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self._inside = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "input", "br"):
            self._inside.append("text" in (dict(attributes).get("class") or "").split())
            if self._inside[-1]:
                self.texts.append("")

    def handle_endtag(self, tag):
        self._inside.pop()

    def handle_data(self, data):
        if self._inside and self._inside[-1]:
            self.texts[-1] += data

    def all(self, tag, **attributes):
        return [own for name, own in self.elements if name == tag and attributes.items() <= own.items()]


def test_pairs_are_in_random_order_and_either_side_has_the_adapted_model_equally_often():
    pairs = blind_pairs(ANSWERS, seed=0)
    assert pairs == blind_pairs(ANSWERS, seed=0)
    assert [each.prompt for each in pairs] != [each.prompt for each in ANSWERS]
    assert sorted(each.prompt for each in pairs) == sorted(each.prompt for each in ANSWERS)
    assert sum(each.adapted == "A" for each in pairs) == 10
    for each in pairs:
        number = each.prompt.split()[1]
        assert (each.a if each.adapted == "A" else each.b) == f"adapted {number}"
        assert (each.b if each.adapted == "A" else each.a) == f"base {number}"
    others = [tuple(each.adapted for each in blind_pairs(ANSWERS, seed)) for seed in range(5)]
    assert len(set(others)) == 5
    assert len({each.name for seed in range(5) for each in blind_pairs(ANSWERS, seed)}) == 100  # no mistaken sheet


def test_what_both_answer_the_same_is_not_judged():
    assert len(blind_pairs([*ANSWERS, Answers("x", "same", "same")], 0)) == 20


def test_the_page_shows_every_text_as_it_is_and_asks_no_network():
    answers = [Answers(f"{text} prompt", f"{text} base", f"{text} adapted") for text in NASTY]
    pairs = blind_pairs(answers, 0)
    text = sheet_html(pairs, find_language("cy"))
    page = Page(text)
    assert page.texts == [part for each in pairs for part in (each.prompt, each.a, each.b)]
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not any({"src", "href", "action", "onerror"} & own.keys() for _, own in page.elements)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none';")
    for each in pairs:
        assert [own["value"] for own in page.all("input", type="radio", name=each.name)] == ["A", "tie", "B"]
    plain = sheet_html(blind_pairs([Answers("x", "y", "z")], 0), None)
    assert not re.search(r"@import|url\(|fetch\(|https?://|adapted", plain)
    assert "width=device-width" in plain
    assert "light dark" in plain


@pytest.mark.parametrize(
    ("code", "tag", "direction"),
    [("cy", "cy-Latn", "ltr"), ("ar", "ar-Arab", "rtl"), ("he", "he-Hebr", "rtl"), ("gla-Latn", "gd-Latn", "ltr"),
     ("ks-Deva", "ks-Deva", "ltr"), ("dv-Thaa", None, "rtl"), (None, None, "auto")],
)  # fmt: skip
def test_texts_have_the_language_and_direction_of_their_script(code, tag, direction):
    language = find_language({"dv-Thaa": "div-Thaa"}.get(code, code)) if code else None
    texts = [own for own in Page(sheet_html(blind_pairs(ANSWERS, 0), language)).all("div") if "dir" in own]
    assert len(texts) == 60
    assert {own["dir"] for own in texts} == {direction}
    if code != "dv-Thaa":
        assert {own.get("lang") for own in texts} == {tag}


def test_every_language_has_a_tag_of_the_right_form():
    for language in known_languages():
        assert re.fullmatch(r"[a-z]{2,3}-[A-Z][a-z]{3}", language.tag)
        assert language.tag.endswith(language.script)


def test_the_table_holds_every_text_and_no_formula():
    pairs = blind_pairs([Answers(f"p{text}", text, f"{text} adapted") for text in NASTY], 0)
    text = sheet_csv(pairs)
    assert text.startswith("\ufeff")
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))
    assert [row["pair"] for row in rows] == [each.name for each in pairs]
    for row, each in zip(rows, pairs, strict=True):
        assert {side: row[side].removeprefix("'") for side in "AB"} == {"A": each.a, "B": each.b}
        assert not any(row[side].startswith(("=", "+", "-", "@")) for side in "AB")
        assert row["better"] == ""


# What is counted.


def test_intervals_and_sign_tests_are_those_of_the_enumerated_binomial():
    """The definition itself: the shares at which a count as extreme has a chance of 2.5 %, over every outcome."""
    for decided in range(1, 13):
        for wins in range(decided + 1):
            low, high = exact_interval(wins, decided)
            chances = [
                sum(math.comb(decided, k) * share**k * (1 - share) ** (decided - k) for k in counts)
                for share, counts in ((low, range(wins, decided + 1)), (high, range(wins + 1)))
            ]
            assert chances[0] == pytest.approx(0.025 if wins else 1.0)
            assert chances[1] == pytest.approx(0.025 if wins < decided else 1.0)
            uneven = abs(2 * wins - decided)
            as_uneven = [sides for sides in product((0, 1), repeat=decided) if abs(2 * sum(sides) - decided) >= uneven]
            assert Tally(wins, 5, decided - wins).p == pytest.approx(len(as_uneven) / 2**decided)
    low, high = exact_interval(5200, 10_000)
    assert (round(low, 3), round(high, 3)) == (0.510, 0.530)


def test_agreement_is_that_of_krippendorffs_own_examples():
    """Computing Krippendorff's Alpha-Reliability (2011), examples A to C: two judges, five classes, missing data."""

    def of(*judges):
        return Agreement.of([{str(n): w for n, w in enumerate(said) if w != "."} for said in judges])

    assert of("0100000010", "1110010000").alpha == pytest.approx(0.095, abs=5e-4)
    assert of("aabbdcccedda", "babbbccceddd").alpha == pytest.approx(0.692, abs=5e-4)
    many = of("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    assert many.alpha == pytest.approx(0.743, abs=5e-4)
    assert of("aaa", "aaa").share == 1.0
    assert math.isnan(of("aaa", "aaa").alpha)
    assert of("a.", ".b").pairs == 0


def test_a_pair_counts_once_however_many_judge_it():
    first, second, third = ({"1": "adapted", "2": "base"}, {"1": "adapted", "2": "adapted"}, {"2": "tie", "3": "base"})
    assert by_majority([first, second, third]) == {"1": "adapted", "2": "tie", "3": "base"}


@pytest.fixture
def sheet(tmp_path):
    """A sheet's key, and a function that writes it as filled in by a judge."""
    pairs = blind_pairs(ANSWERS, 0)
    (tmp_path / "key.json").write_text(json.dumps(sheet_key(pairs, 3, {})))

    def fill(name, choices, separator=",", encoding="utf-8-sig", heading="better"):
        """Writes the choices, in the order of the pairs: + adapted, - base, = tie, space not judged, else as it is."""
        other = {"A": "B", "B": "A"}
        said = {"=": "tie", " ": ""}
        with (tmp_path / name).open("w", encoding=encoding, newline="") as file:
            rows = csv.writer(file, delimiter=separator)
            rows.writerow(["pair", "prompt", "A", "B", heading])
            for pair, choice in zip(pairs, choices, strict=False):
                better = {"+": pair.adapted, "-": other[pair.adapted]}.get(choice, said.get(choice, choice))
                rows.writerow([pair.name, pair.prompt, pair.a, pair.b, better])
        return tmp_path / name

    return fill


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_was_filled_in_is_read_back(sheet, tmp_path, separator):
    said, problems = read_judged(sheet("a.csv", "++-= ", separator), Key.load(tmp_path / "key.json"))
    assert problems == []
    assert list(said.values()) == ["adapted", "adapted", "base", "tie"]


def test_judges_are_counted_each_and_together(sheet, capsys):
    one, other = sheet("one.csv", "++++++++====--      "), sheet("two.csv", "+++++++=====---++   ")
    assert main(["generate", f"--tally={one},{other}"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert re.fullmatch(r"one +8 +4 +2 +6 +80.0 % +44.4 to 97.5 % +0.1094", lines[1])
    assert re.fullmatch(r"two +9 +5 +3 +3 +75.0 % +42.8 to 94.5 % +0.146", lines[2])
    assert re.fullmatch(r"most of 2 +10 +4 +3 +3 .*", lines[3])
    assert any(line.startswith("Two judges of a pair agree in 92.9 % of 14 pairs, Krippendorff's") for line in lines)
    assert any(line.startswith("To 3 more prompts both models gave the same answer") for line in lines)


def test_a_choice_may_be_written_as_people_write(sheet, tmp_path):
    (tmp_path / "a.csv").write_text(sheet("a.csv", "+++").read_text("utf-8-sig").replace(",A\n", ", a \n"))
    assert len(read_judged(tmp_path / "a.csv", Key.load(tmp_path / "key.json"))[0]) == 3


@fault("judged sheets with other choices, pairs of another sheet, a pair twice, no column, no key")
def test_rows_that_cannot_be_counted_are_a_line_each(sheet, tmp_path, capsys):
    bad = sheet("bad.csv", "+C=x-")
    text = bad.read_text("utf-8-sig").split("\n")
    bad.write_text("\n".join([*text[:-1], text[1], text[1].replace("-", "x", 1), ""]))
    assert main(["generate", f"--tally={bad}"]) == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert [line.split(": ", 1)[0].rsplit(" ", 1)[1] for line in lines[:-1]] == ["3", "5", "7", "8"]
    expected = ("better is 'C'; expected A, B or tie", "better is 'x'", "is judged twice", "there is no pair")
    for line, said in zip(lines, expected, strict=False):
        assert said in line
    assert lines[-1].endswith("4 rows cannot be counted; mend what is said above, and run the same command again")
    good = sheet("good.csv", "+")
    (tmp_path / "latin.csv").write_bytes("pair,better\n\xe9,A\n".encode("latin-1"))
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "other.json").write_text('{"adapted": []}')
    for keys, line in (
        ((f"--tally={tmp_path / 'no.csv'}",), "cannot read the judged sheet .*: No such file"),
        ((f"--tally={tmp_path / 'latin.csv'}",), "is not UTF-8; save it as CSV in UTF-8"),
        ((f"--tally={tmp_path / 'empty.csv'}",), "has no column pair and better"),
        ((f"--tally={sheet('h.csv', '+', heading='best')}",), "has no column better"),
        (("--tally=,",), "--tally names no sheet"),
        ((f"--tally={good}", f"--key={tmp_path / 'nowhere'}"), "there is no key at .*; give the sheet's with --key"),
        ((f"--tally={good}", f"--key={tmp_path / 'other.json'}"), "is not the key of a sheet"),
        ((f"--tally={good}", "--seed=3"), "leave --seed out"),
    ):
        refused(capsys, ["generate", *keys], line)


def test_a_sheet_of_a_run_comes_back_counted(workplace, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("जिपो\nसिवा\nE četo\nKda\n", encoding="utf-8")
    run, folder = workplace.folder / "runs/adapted", tmp_path / "sheet"
    keys = [f"--prompts={prompts}", "--temperature=1", "--max_new_tokens=12", f"--sheet={folder}"]
    assert main(["generate", str(run), *keys]) == 0, capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["key.json", "sheet.csv", "sheet.html"]
    key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    rows = list(csv.DictReader(io.StringIO((folder / "sheet.csv").read_text("utf-8-sig"), newline="")))
    assert {row["pair"]: None for row in rows}.keys() == key["adapted"].keys()
    page = Page((folder / "sheet.html").read_text(encoding="utf-8"))
    assert {own.get("lang") for own in page.all("div", dir="ltr")} == {"qah-Deva"}
    for row in rows:  # a judge who finds the adapted model always
        row["better"] = key["adapted"][row["pair"]]
    with (folder / "judged.csv").open("w", newline="") as file:
        out = csv.DictWriter(file, rows[0].keys())
        out.writeheader()
        out.writerows(rows)
    capsys.readouterr()
    assert main(["generate", f"--tally={folder / 'judged.csv'}"]) == 0
    assert re.search(rf"judged +{len(rows)} +0 +0 +0 +100.0 %", capsys.readouterr().out)
    same = [f"--prompts={prompts}", "--scale=0", "--max_new_tokens=3", f"--sheet={tmp_path / 'none'}"]
    refused(capsys, ["generate", str(run), *same], "answer every prompt the same, so there is nothing to judge")
    assert not (tmp_path / "none").exists()

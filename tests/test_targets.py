"""Targets and their shares, as --language names them."""

import math
import random

import pytest

from lightning_app.errors import UserError
from lightning_app.languages import find_languages, known_languages
from tests.faults import fault, note, refusal

ALL = known_languages()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cy", {"cy": 1.0}),
        ("Welsh", {"cy": 1.0}),
        ("cy:7", {"cy": 1.0}),
        ("cy,mt", {"cy": 0.5, "mt": 0.5}),
        (" cy , mt ", {"cy": 0.5, "mt": 0.5}),
        ("cy:3,mt:1", {"cy": 0.75, "mt": 0.25}),
        ("cy : 3 , mt", {"cy": 0.75, "mt": 0.25}),
        ("vie_Latn:0.5,Norwegian Bokmål:1.5", {"vi": 0.25, "nb": 0.75}),
        ("Chinese (Traditional):1e-3,qaa-Latn:3e-3", {"zh-Hant": 0.25, "qaa-Latn": 0.75}),
    ],
)
def test_targets_and_their_shares(text, expected):
    assert {language.short: pytest.approx(share) for language, share in find_languages(text)} == expected


def test_shares_sum_to_one_and_keep_order_and_proportion():
    draw = random.Random(0)
    for _ in range(200):
        chosen = draw.sample(ALL, draw.randint(1, 12))
        weights = [draw.uniform(0.001, 100) for _ in chosen]
        words = [draw.choice([one.short, one.name, one.glotcc, one.flores_200]) for one in chosen]
        found = find_languages(",".join(f"{word}:{weight!r}" for word, weight in zip(words, weights, strict=True)))
        assert [language for language, _ in found] == chosen
        assert math.fsum(share for _, share in found) == pytest.approx(1)
        assert [share * sum(weights) for _, share in found] == pytest.approx(weights)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "names no language in ''"),
        (",", "names no language in ''"),
        ("cy,", "names no language in ''"),
        ("cy,,mt", "names no language in ''"),
        (":2", "names no language in ':2'"),
        ("cy:", "the share of Welsh (cy) is ''"),
        ("cy:0", "the share of Welsh (cy) is '0'"),
        ("mt,cy:-1", "the share of Welsh (cy) is '-1'"),
        ("cy:nan", "the share of Welsh (cy) is 'nan'"),
        ("cy:inf,mt", "the share of Welsh (cy) is 'inf'"),
        ("cy:1e999", "the share of Welsh (cy) is '1e999'"),
        ("cy:half", "the share of Welsh (cy) is 'half'"),
        ("cy:1:2", "the share of Welsh (cy) is '1:2'"),
        ("cy,Welsh", "names Welsh (cy) twice"),
        ("cy:1,mt:1,cym_Latn:1", "names Welsh (cy) twice"),
        ("qaa-Latn,qaa_Latn", "names qaa-Latn twice"),
        ("cy:1e308,mt:1e308", "too large to add up"),
    ],
)
@fault("--language is '{text}'")
def test_bad_targets_are_refused_in_one_line(text, found):
    with pytest.raises(UserError) as refused:
        find_languages(text)
    line = str(refused.value)
    assert line.startswith(f"--language is '{text}', wh")
    assert found in line
    assert line.endswith("; expected languages with or without shares, e.g. --language cy:2,mt:1")
    assert "\n" not in line
    note(line)


@fault("--language with a name that is misspelt, beside another")
def test_an_unknown_target_is_named():
    with refusal(r"^unknown language 'welch'; did you mean 'Welsh'"):
        find_languages("mt:2,welch:1")

"""The page of faults lists the tests that are there."""

from collections import Counter

import pytest

from tests.conftest import ROOT
from tests.faults import COLLECTED, MARKED, cell, rows_of

PAGE = ROOT / "docs/faults.md"


def test_the_page_lists_exactly_the_marked_tests(request):
    """Of the files that were collected whole: all of them in a run of all tests."""
    if request.config.getoption("keyword") or any("::" in argument for argument in request.config.args):
        pytest.skip("only some tests of a file were collected")
    files = request.config.stash[COLLECTED]
    marked = Counter((file, function, cell(fault)) for file, function, fault in request.config.stash[MARKED])
    listed = Counter(row for row in rows_of(PAGE.read_text(encoding="utf-8")) if row[0] in files)
    assert list(marked - listed) == [], "not on the page yet: make faults writes it"
    assert list(listed - marked) == [], "on the page, but no test any more: make faults writes it"


def test_every_row_says_what_is_seen_and_there_are_many():
    text = PAGE.read_text(encoding="utf-8")
    rows = rows_of(text)
    assert len(rows) >= 100
    assert f"{len(rows)} faults that" in text

"""The page that tells of a run, for runs of every kind, and in a real browser where there is one."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from lightning_app.cli import main
from lightning_app.files import write_json, write_text
from lightning_app.languages import PAPER_LANGUAGES, find_language
from lightning_app.reports.run_page import RunReport, make_run_page
from lightning_app.reports.run_plots import inlined
from lightning_app.run import RunFolder
from tests.faults import refused

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """What a page has: its tags, its names, its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def require_sound(text):
    """Every name once, every link to a name that is there, no script, nothing from a network."""
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    inside = [link for link in page.links if not link.startswith("data:image/png;")]
    assert all(link.startswith("#") and link[1:] in page.ids for link in inside)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    return page


@pytest.fixture(scope="module")
def told(workplace):
    arguments = [*workplace.adapt("reported", data__token_budget=6144), "--samples=2", "--report"]
    assert main(arguments) == 0
    return RunFolder(workplace.folder / "reported/adapted")


@pytest.fixture
def copied(told, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(told.path, folder)
    return RunFolder(folder)


def test_a_run_ends_with_its_page(told):
    page = require_sound(told.report.read_text(encoding="utf-8"))
    result = told.record()["result"]
    (before, _), (after, bits) = result["before"]["qah-Deva"], result["best"]["losses"]["qah-Deva"]
    for figure in (f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}", f"{bits:.4f}", "Complete: 24 steps"):
        assert figure in page.text
    samples = [json.loads(line) for line in told.samples.read_text(encoding="utf-8").splitlines()]
    assert len(samples) == 2
    assert all(each["base"] in page.text.replace("  ", " ") or each["base"].strip() for each in samples)
    assert all(each["tag"] == "qah-Deva" and each["direction"] == "ltr" for each in samples)
    assert {"curves", "changes", "layers"} <= set(page.ids)
    assert str(told.config) in page.text


def test_the_page_is_made_again_after_evaluate_and_analyze(copied, capsys):
    write_json(copied.evaluation, {"models": {}, "tasks": {
        "belebele": {"language": "qah-Deva", "metric": "acc", "items": 9, "base": 0.25, "adapted": 0.5, "changes": {
            "acc": {"value": 0.25, "low": 0.1, "high": 0.4, "p": 0.01, "verdict": "better"}}},
        "sib200": {"language": "qah-Deva", "left_out": "it has no such language"},
    }})  # fmt: skip
    assert main(["analyze", str(copied), "--what=neurons,change", f"--out={copied.analysis}"]) == 0
    assert main(["report", str(copied)]) == 0
    assert f"report: {copied.report}" in capsys.readouterr().out
    page = require_sound(copied.report.read_text(encoding="utf-8"))
    for words in ("+0.250 [+0.100, +0.400]", "better", "left out: it has no such language", "How far training moved"):
        assert words in page.text
    assert page.tags.count("svg") == 5


def test_text_of_data_and_configurations_is_escaped(copied):
    write_text(
        copied.samples,
        json.dumps({"prompt": HOSTILE, "base": HOSTILE, "adapted": HOSTILE, "tag": '"x', "direction": "rtl"}),
    )
    record = copied.record()
    write_json(copied.record_file, {**record, "base": {**record["base"], "name": HOSTILE}, "method": HOSTILE})
    page = require_sound(make_run_page(copied))
    assert page.words.count(HOSTILE) >= 3


def test_a_run_that_stopped_half_way_is_told(copied):
    record = {key: value for key, value in copied.record().items() if key != "result"}
    write_json(copied.record_file, {**record, "status": "training"})
    rows = copied.metrics.read_text().splitlines()
    write_text(copied.metrics, "\n".join([*rows[: len(rows) // 2], '{"step": 12, "train/lo']))
    copied.samples.unlink()
    page = require_sound(make_run_page(copied))
    assert re.search(r"Not complete: \d+ of 24 steps", page.text)
    for gone in (copied.metrics, *copied.checkpoints.glob("*")):
        gone.unlink()
    assert "Not complete: 0 of 24 steps" in require_sound(make_run_page(copied)).text


def of_languages(copied, count):
    """Gives a run losses of ``count`` languages, the first the target."""
    codes = [language.short for language in map(find_language, [*PAPER_LANGUAGES, *MORE][:count])]
    before = {code: [2.0, 1.0] for code in codes}
    after = {code: [2.0 + 0.01 * (place - 3), 1.0] for place, code in enumerate(codes)}
    record = copied.record()
    best = {"step": 24, "losses": after, "errors": dict.fromkeys(codes, 0.004)}
    result = {**record["result"], "before": before, "best": best}
    write_json(copied.record_file, {**record, "targets": {codes[0]: 1.0}, "result": result})
    return RunReport(copied)


MORE = (
    *("en", "de", "fr", "es", "it", "nl", "pt", "ru", "uk", "pl", "cs", "bg", "ro", "hu", "fi", "sv", "da", "tr"),
    *("el", "ar", "he", "fa", "ur", "hi", "bn", "ta", "te", "th", "vi", "id", "no"),
)


def test_one_language_and_forty_are_told(copied):
    one = of_languages(copied, 1)
    assert [each.verdict for each in one.changes] == ["better"]
    assert len(one.findings) == 1
    require_sound(make_run_page(copied))
    forty = of_languages(copied, 40)
    assert len(forty.changes) == 40
    assert [each.change for each in forty.changes[1:]] == sorted(
        (each.change for each in forty.changes[1:]), reverse=True
    )
    assert "36 of 39 watched languages paid for it beyond noise" in forty.findings[1]
    page = require_sound(make_run_page(copied))
    assert page.tags.count("tr") >= 41


def test_what_is_no_run_is_one_line(tmp_path, capsys, copied):
    refused(capsys, ["report", str(tmp_path / "none")], "there is no folder")
    (tmp_path / "empty").mkdir()
    refused(capsys, ["report", str(tmp_path / "empty")], "has no run.json")
    write_text(copied.samples, "[]\n{")
    refused(capsys, ["report", str(copied)], "damaged")
    assert copied.report.is_file()


def test_names_in_a_picture_are_its_own():
    inner = '<g id="{0}a"><use xlink:href="#{0}a" clip-path="url(#{0}a)"/></g></svg>'
    svg = f'<?xml version="1.0"?>\n<svg width="1pt" height="2pt" viewBox="0 0 1 2">{inner.format("")}'
    assert inlined(svg, "x") == f'<svg viewBox="0 0 1 2">{inner.format("x-")}'


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("count", [1, 40])
def test_a_browser_shows_every_picture_and_nothing_wider_than_a_phone(copied, tmp_path, count):
    of_languages(copied, count)
    probe = (
        "<script>const wide = document.documentElement.scrollWidth, drawn = [...document.querySelectorAll('svg')]"
        ".map(each => each.getBoundingClientRect()); document.title = JSON.stringify({wide, drawn: drawn.map(each => "
        "[each.width, each.height])});</script>"
    )
    text = make_run_page(copied).replace("style-src", "script-src 'unsafe-inline'; style-src")
    frame = tmp_path / "frame.html"
    write_text(tmp_path / "page.html", text.replace("</body>", f"{probe}</body>"))
    # A window is at least 500 wide: the phone is a frame in it.
    write_text(
        frame,
        '<iframe id="f" src="page.html" style="width:360px;height:640px;border:0"></iframe><script>onload = () => '
        "document.body.append(document.getElementById('f').contentDocument.title)</script>",
    )
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        "--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000", "--dump-dom", f"file://{frame}",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(re.search(r"\{&quot;wide.*?\}|\{\"wide.*?\}", ran.stdout)[0].replace("&quot;", '"'))
    assert found["wide"] <= 360
    assert len(found["drawn"]) == text.count("<svg")
    assert all(width > 200 and height > 60 for width, height in found["drawn"])
    assert "CONSOLE" not in ran.stderr

"""What a run shows while it works: bars and lines with time left, losses whose changes mean something."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest
import torch
from filelock import FileLock

from lightning_app.cli import main
from lightning_app.progress import ByteProgress, TokenProgress, bytes_of, held, watched
from lightning_app.reports.tables import LOSSES, format_losses, worst_first
from lightning_app.training.metrics import change_error, is_beyond_noise


@pytest.fixture(autouse=True)
def keep_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])


@pytest.fixture
def every_line(monkeypatch):
    """Plain lines at every advance, where they otherwise come every ten seconds."""
    monkeypatch.setattr(TokenProgress.__init__, "__defaults__", (0, True, 0.0, False))


@contextlib.contextmanager
def terminal(monkeypatch):
    """A pseudo-terminal of 100 columns in the place of stdout; gives what was written to it."""
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    written = []

    def read():
        while True:
            try:
                part = os.read(mine, 1 << 16)
            except OSError:
                return
            if not part:
                return
            written.append(part)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with os.fdopen(theirs, "w", buffering=1) as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        yield lambda: b"".join(written).decode()
    reader.join(10)
    os.close(mine)


def shown_rates(text):
    units = {"": 1.0, "k": 1e3, "M": 1e6}
    return [float(n) * units[unit] for n, unit in re.findall(r"([\d.]+)([kM]?)tok/s", text)]


def test_rate_and_time_left_survive_a_validation(monkeypatch):
    """The bar on a real pseudo-terminal: tqdm itself would count the pause as slow work."""

    def work(progress):
        for _ in range(8):
            time.sleep(0.05)
            progress.advance(1000)
        time.sleep(0.15)

    with terminal(monkeypatch) as shown, TokenProgress("training", 1_000_000) as progress:
        work(progress)
        before = shown_rates(shown())[-1]
        progress.pause()
        time.sleep(1.2)
        progress.resume()
        seen = len(shown())
        work(progress)
        after = shown_rates(shown()[seen:])
        mean = progress.rate
    assert len(after) >= 2
    assert min(after) > 0.5 * before  # with the pause counted: a sixth
    assert mean > 0.5 * before


def test_a_bar_that_is_over_soon_is_not_shown(monkeypatch):
    with terminal(monkeypatch) as shown:
        with TokenProgress("measuring", 100, is_brief=True) as progress:
            progress.advance(50)
        time.sleep(0.1)
        assert shown().strip() == ""


def test_work_that_does_not_report_is_watched(capsys, tmp_path):
    """A file that grows: how much of it is there, how fast it grows, and how long it will take."""
    progress = ByteProgress("saving x", 4_000_000, line_every_s=0.0)
    with watched(progress, lambda: bytes_of(tmp_path, ".x.*"), every_s=0.02):
        for _ in range(3):
            with (tmp_path / ".x.partial").open("ab") as file:
                file.write(bytes(1_000_000))
            time.sleep(0.1)
        (tmp_path / ".x.partial").rename(tmp_path / "x")
        time.sleep(0.1)
    lines = capsys.readouterr().out.strip().split("\n")
    assert any(re.fullmatch(r"saving x: 2M of 4MB 50 %, [\d.]+[kMG]?B/s, \d+ s left", line) for line in lines), lines
    assert progress.done == 3_000_000  # what was seen is not taken back


def test_who_waits_for_another_process_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_app.progress._LINE_EVERY_S", 0.2)
    code = "import filelock, sys, time\nwith filelock.FileLock(sys.argv[1]): print(flush=True); time.sleep(1)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    other.stdout.readline()
    with held(FileLock(tmp_path / "lock"), "fills the cache"):
        pass
    assert other.wait() == 0
    assert capsys.readouterr().out == "another process fills the cache; waiting for it\n"


def test_every_phase_shows_how_far_it_is(workplace, capsys, every_line):
    """Without a terminal, in lines; a method that looks at text before it trains has every phase."""
    keys = {"model__method": "gradient", "model__calibration_sequences": 8, "model__calibration_tokens": 64}
    atlas = f"--profiling.atlas={workplace.folder}/calm.safetensors"
    cache = f"--data.cache_dir={workplace.folder / 'calm'}"
    assert main([*workplace.adapt("calm", data__token_budget=2048, **keys), atlas, cache]) == 0
    said = capsys.readouterr().out
    for title in ("tokenising qah-Deva", "reading .*model", "checking .*model", "profiling qah-Deva",
                  "looking at text of qah-Deva", "measuring the base", "training", "validating"):  # fmt: skip
        line = rf"^{title}: \S+ of \S+( \w+)? +\d+ %, \S+ ?\w+/s(, .*left)?"
        assert re.search(line, said, re.MULTILINE), (title, said)


def test_losses_are_explained_once_and_have_bits_per_byte_in_every_line(workplace, capsys):
    assert main(workplace.adapt("lines")) == 0
    said = capsys.readouterr().out
    assert said.count(LOSSES) == 1
    assert "lower is better" in LOSSES
    assert re.search(r"^before training: qah-Deva \d\.\d{4} \d\.\d{4} bits/byte, qaa-Latn ", said, re.MULTILINE)
    for step in (20, 40, 48):
        assert re.search(
            rf"^step {step}: .*qah-Deva \d\.\d{{4}} \(-\d\.\d{{4}}\) \d\.\d{{4}} bits/byte", said, re.MULTILINE
        )


def test_what_got_worse_by_more_than_noise_is_marked_and_comes_first(workplace, capsys):
    """A rate at which the target's text is learned by heart, at the cost of the language watched."""
    assert main(workplace.adapt("worse", model__lr=0.05, data__token_budget=24576, trainer__validate_every=96)) == 0
    said = capsys.readouterr().out
    assert re.search(r"^step 96: qaa-Latn \S+ \(\+\d\.\d{4} worse\) ", said, re.MULTILINE), said
    summary = (workplace.folder / "worse/adapted/summary.md").read_text()
    rows = [line for line in summary.split("\n") if line.startswith("qa")]
    assert rows[0].startswith("qaa-Latn")
    assert rows[0].endswith(" worse")
    assert rows[1].endswith("<- target")


def test_a_table_marks_a_target_that_got_worse():
    losses, before = {"cy": [2.2, 1.0], "en": [1.0, 1.0]}, {"cy": [2.0, 1.0], "en": [1.2, 1.0]}
    table = format_losses(losses, before, ["cy"], {"cy": 0.05, "en": 0.05})
    assert re.search(r"Welsh \(cy\) .* worse <- target$", table, re.MULTILINE)
    assert list(worst_first(losses, before, {"cy": 0.2, "en": 0.2})) == ["cy", "en"]
    assert not any(worst_first(losses, before, {"cy": 0.2, "en": None}).values())


def test_the_error_of_a_change_is_that_of_a_bootstrap_over_blocks():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(50, 500, (80,), generator=generator)
    before = tokens * (2 + torch.rand(80, generator=generator, dtype=torch.float64))
    after = before + tokens * (0.01 + 0.05 * torch.randn(80, generator=generator, dtype=torch.float64))
    drawn = torch.randint(0, 80, (4000, 80), generator=generator)
    changes = (after - before)[drawn].sum(1) / tokens[drawn].sum(1)
    assert change_error(before, after, tokens) == pytest.approx(changes.std().item(), rel=0.1)
    assert change_error(before[:1], after[:1], tokens[:1]) is None


def test_what_is_noise_alone_is_seldom_taken_for_worse():
    """Changes that are zero on average, of 60 blocks: about one in forty is beyond two errors."""
    generator = torch.Generator().manual_seed(0)
    tokens, wrong = torch.full((60,), 500), 0
    for _ in range(400):
        before = 1000 + 100 * torch.randn(60, generator=generator, dtype=torch.float64)
        after = before + 5 * torch.randn(60, generator=generator, dtype=torch.float64)
        rise = float((after - before).sum() / tokens.sum())
        wrong += is_beyond_noise(rise, change_error(before, after, tokens))
    assert 1 <= wrong <= 24


def test_text_that_is_passed_over_more_than_once_is_told(workplace, capsys):
    assert main(workplace.adapt("passes", data__token_budget=150000, data__epochs=3, trainer__max_steps=1)) == 0
    said = capsys.readouterr().out
    line = (
        r"has ([\d.]+)k tokens of text, less than .* 150k: training on ([\d.]+)k tokens, which passes .* ([\d.]+) times"
    )
    found = re.search(line, said)
    assert float(found[3]) == pytest.approx(float(found[2]) / float(found[1]), abs=0.06)

"""A hub that fails while its real clients stream: the token cache comes out byte for byte, and the lines are calm."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from huggingface_hub import close_session, constants

from datamodules import token_cache
from datamodules.sources import HubSource
from lightning_app.hub import client
from lightning_app.languages import find_language
from tests.caches import train_on
from tests.conftest import ROOT
from tests.fake_hub import ask_hub
from tests.faults import fault, note, refusal
from tests.torture.ends import differences

GLOTCC = "cis-lmu/GlotCC-V1"
LANGUAGES = [find_language(code) for code in ("cy", "mt", "ka")]
ASKED_AGAIN = r"the hub .+; asking again in \d+ s \(\d of \d\)"


class LocalHub:
    """A hub in a process of its own, which is killed and stopped, and started again at its address."""

    def __init__(self, shared, root, *faults):
        self.command = [sys.executable, str(shared / "tools/local_hub.py"), str(root), *faults]
        self.port, self.asked, self.at_request = 0, 0, {}
        self.start()

    def start(self):
        command = [*self.command, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().strip().partition("=")[2]
        self.port = int(self.address.rpartition(":")[2])
        threading.Thread(target=self.count, args=(self.process,), daemon=True).start()

    def count(self, process):
        for _ in process.stderr:
            self.asked += 1
            if action := self.at_request.pop(self.asked, None):
                action()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def kill_for(self, seconds):
        self.kill()
        time.sleep(seconds)
        self.start()


@pytest.fixture
def local_hub(shared, monkeypatch, tmp_path):
    hubs = []

    def make(*faults):
        hubs.append(LocalHub(shared, shared / "data/hub", *faults))
        ask_hub(hubs[-1].address, monkeypatch, tmp_path)
        return hubs[-1]

    yield make
    for hub in hubs:
        hub.process.send_signal(signal.SIGCONT)
        hub.kill()
    close_session()


@pytest.fixture(scope="module")
def tokenizer(hub, tmp_path_factory):
    return train_on(hub, tmp_path_factory.mktemp("tokenizer"))


def fill(root, tokenizer, at_batch=lambda number: None):
    """Fills caches of three languages; calls ``at_batch`` with the number of the batch that was read."""
    seen = []

    def usable(lengths):
        seen.append(lengths)
        at_batch(len(seen))
        return int(lengths.sum())

    for language in LANGUAGES:
        token_cache.fill(root, HubSource(GLOTCC, language, "main"), tokenizer, 40_000, usable, "", False)


def contents(root):
    """Every file of every cache; the manifests hold no times."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def calm(text):
    """Whether every line says what is waited for, and that there is one."""
    lines = [line for line in text.strip().split("\n") if line]
    assert lines
    assert all(re.fullmatch(ASKED_AGAIN, line) for line in lines), lines
    note(lines[0])


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr("datamodules.sources._BATCH", 4)


@pytest.fixture(scope="module")
def undisturbed(shared, tokenizer, tmp_path_factory):
    folder, hub = tmp_path_factory.mktemp("undisturbed"), LocalHub(shared, shared / "data/hub")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("datamodules.sources._BATCH", 4)
        ask_hub(hub.address, monkeypatch, folder)
        fill(folder / "caches", tokenizer)
    hub.kill()
    found = contents(folder / "caches")
    assert len([name for name in found if name.endswith("tokens.bin")]) == len(LANGUAGES)
    return found


FAULTS = ["--fail-every 2", "--fail-every 3", "--cut-every 2", "--fail-every 3 --cut-every 5"]


@pytest.mark.parametrize("faults", FAULTS)
@fault("a hub with {faults} while text is tokenised")
def test_the_cache_is_the_same_whatever_fails(faults, undisturbed, local_hub, tokenizer, tmp_path, monkeypatch, capsys):
    local_hub(*faults.split())
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    fill(tmp_path / "faulty", tokenizer)
    assert contents(tmp_path / "faulty") == undisturbed
    calm(capsys.readouterr().err)


@pytest.mark.parametrize("batch", [2, 5, 9, 14])
@fault("a hub that dies at batch {batch} while text is tokenised, and comes back")
def test_the_cache_is_the_same_when_the_hub_dies_and_comes_back(
    batch, undisturbed, local_hub, tokenizer, tmp_path, monkeypatch, capsys
):
    hub = local_hub()
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if hub.process.poll() is not None and len(waits) > 1:  # it is away for two attempts
            hub.start()

    monkeypatch.setattr(client.time, "sleep", wait)
    fill(tmp_path / "faulty", tokenizer, at_batch=lambda number: hub.kill() if number == batch else None)
    assert contents(tmp_path / "faulty") == undisturbed
    calm(capsys.readouterr().err)


@fault("a hub that accepts and does not answer while text is tokenised, and goes on later")
def test_the_cache_is_the_same_when_the_hub_hangs(undisturbed, local_hub, tokenizer, tmp_path, monkeypatch, capsys):
    hub = local_hub()
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr(client.time, "sleep", lambda seconds: hub.process.send_signal(signal.SIGCONT))
    stop = signal.SIGSTOP
    fill(tmp_path / "faulty", tokenizer, at_batch=lambda number: number == 1 and hub.process.send_signal(stop))
    assert contents(tmp_path / "faulty") == undisturbed
    calm(capsys.readouterr().err)


@fault("a hub that stays away while text is tokenised: the run ends, and goes on when it is back")
def test_a_fill_that_ends_without_the_hub_goes_on_when_it_is_back(
    undisturbed, local_hub, tokenizer, tmp_path, monkeypatch, capsys
):
    hub = local_hub()
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    with refusal("cannot reach"):
        fill(tmp_path / "faulty", tokenizer, at_batch=lambda number: hub.kill() if number == 3 else None)
    hub.start()
    monkeypatch.setattr(client._PatientClient, "given_up", {})
    fill(tmp_path / "faulty", tokenizer)
    assert contents(tmp_path / "faulty") == undisturbed


@fault("text that is gated, read once its terms are accepted")
def test_the_cache_is_the_same_behind_a_gate(undisturbed, local_hub, tokenizer, tmp_path, monkeypatch):
    local_hub("--gate", GLOTCC)
    with refusal("is gated: open https"):
        fill(tmp_path / "gated", tokenizer)
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    close_session()
    fill(tmp_path / "gated", tokenizer)
    assert contents(tmp_path / "gated") == undisturbed


# The whole program, with base, FLORES and text from the hub


@pytest.fixture(scope="module")
def whole_hub(shared, workplace, tmp_path_factory):
    """The folder of a hub that has a base, too, of which no two requests are for the same file."""
    root = tmp_path_factory.mktemp("whole_hub")
    for owner in ("cis-lmu", "openlanguagedata"):
        (root / owner).symlink_to(shared / "data/hub" / owner)
    (root / "models/owner").mkdir(parents=True)
    (root / "models/owner/base").symlink_to(workplace.folder / "runs/base/model")
    return root


def fit(hub, folder):
    keys = {
        "language": "cy", "name": "adapted", "run_dir": "runs", "data.cache_dir": "cache", "model.base": "owner/base",
        "model.lr": 3e-3, "data.watch": "[mt]", "data.token_budget": 8192, "trainer.validate_every": 20,
        "profiling.languages": "[cy,mt,ka]", "profiling.tokens_per_language": 4096, "profiling.block_size": 128,
        "profiling.rate": 0.3, "profiling.quantile": 0.5, "trainer.precision": "32-true", "trainer.accelerator": "cpu",
        "data.block_size": 64, "data.batch_size": 4,
    }  # fmt: skip
    folder.mkdir()
    changes = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home")}
    env = {**{key: value for key, value in os.environ.items() if key != "HF_TOKEN"}, **changes, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "main.py"), "fit", *(f"--{key}={value}" for key, value in keys.items())]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def whole_run(whole_hub, shared, tmp_path_factory):
    """A run with an undisturbed hub, and how many requests it made."""
    hub, folder = LocalHub(shared, whole_hub), tmp_path_factory.mktemp("whole_run") / "run"
    assert fit(hub, folder) == ""
    hub.kill()
    return folder, hub.asked


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("faults", ["--fail-every 2", "--cut-every 2", "--fail-every 3 --cut-every 4"])
def test_a_run_is_the_same_whatever_fails(faults, whole_run, whole_hub, shared, tmp_path):
    hub = LocalHub(shared, whole_hub, *faults.split())
    said = fit(hub, tmp_path / "run")
    hub.kill()
    assert ends(tmp_path / "run", whole_run[0]) == []
    calm(said)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_a_run_is_the_same_when_the_hub_dies_for_a_moment(share, whole_run, whole_hub, shared, tmp_path):
    folder, asked = whole_run
    hub = LocalHub(shared, whole_hub)
    hub.at_request[max(1, round(share * asked))] = lambda: hub.kill_for(2)
    said = fit(hub, tmp_path / "run")
    hub.kill()
    assert ends(tmp_path / "run", folder) == []
    if said:  # what was asked for next may have been at hand
        calm(said)
    else:
        note("nothing")


def ends(run, undisturbed):
    """What differs, but for what the hub's own clients keep."""
    return [line for line in differences(undisturbed, run) if not line.split(" ", 2)[2].startswith("home/")]

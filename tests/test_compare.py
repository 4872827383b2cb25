"""The verb `compare`: runs made, killed, gone on with and gathered."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from lightning_app.cli import main
from lightning_app.comparison.grid import GridRun, make_grid
from lightning_app.comparison.scaled import scaled_losses
from lightning_app.files import load_checkpoint
from lightning_app.run import RunFolder
from tests.conftest import ROOT
from tests.faults import fault, note, refusal, refused


def arguments(workplace, *more, run_dir="compared", **changes):
    keys = [key for key in workplace.adapt(run_dir, **changes)[1:] if not key.startswith(("--name", "--model.lr"))]
    return ["compare", *keys, "--name=comparison", *more]


@fault("a comparison that is killed")
def test_a_comparison_is_made_of_ordinary_runs_and_goes_on_where_it_was_killed(workplace, capsys):
    make = arguments(workplace, "--methods=subnetwork,lora", "--lrs=30x", "--model.rank=4", data__token_budget=8192)
    env, command = {**os.environ, "OMP_NUM_THREADS": "1"}, [sys.executable, str(ROOT / "main.py"), *make]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    for line in process.stdout:
        if line.startswith("[2/2] lora"):
            time.sleep(6)  # somewhere in the second run: while it imports, trains or saves
            process.kill()
            break
    process.wait()
    time.sleep(0.5)
    fits = subprocess.run(["pgrep", "-f", "lora-lr0.003-seed0/configuration.yaml"], capture_output=True, text=True)
    assert fits.stdout == "", "the run that was going on outlived the comparison"
    assert main([*make, "--list"]) == 0
    assert re.search(r"0  subnetwork-lr0.003-seed0 +complete", capsys.readouterr().out)
    subnetwork = workplace.folder / "compared/comparison/subnetwork-lr0.003-seed0"
    stamp = RunFolder(subnetwork).last_checkpoint.stat().st_mtime_ns
    assert main([*make, "--scale=0,0.5,1"]) == 0
    out = capsys.readouterr().out
    note(re.search(r"2 runs, [12] complete before", out)[0])
    assert RunFolder(subnetwork).last_checkpoint.stat().st_mtime_ns == stamp
    folder = workplace.folder / "compared/comparison"
    for name in ("comparison.md", "comparison.csv", "comparison.json", "front.png", "front.svg", "curves.svg"):
        assert (folder / name).stat().st_size > 100
        assert name in out
    assert "one seed" in out
    for run in ("subnetwork-lr0.003-seed0", "lora-lr0.003-seed0"):
        found = RunFolder(folder / run)
        losses = scaled_losses(found, [0, 0.5, 1])
        before = load_checkpoint(found.best_checkpoint())["callbacks"]["Retention"]["before"]
        best = found.record()["result"]["best"]["losses"]
        for code, (loss, _) in best.items():
            assert losses[0][code][0] == pytest.approx(before[code][0], abs=1e-6)
            assert losses[1][code][0] == pytest.approx(loss, abs=1e-6)
        target = [losses[scale]["qah-Deva"][0] for scale in (0, 0.5, 1)]
        assert target[0] > target[1] > target[2]
        assert f"loss{target[2]:.4f}" in found.best_checkpoint().name
    # An ordinary run's command goes on with it, which is to say: finds it complete.
    assert main(["fit", "--config", str(folder / "lora-lr0.003-seed0/configuration.yaml")]) == 0
    assert "is complete" in capsys.readouterr().out
    rows = json.loads((folder / "comparison.json").read_text())
    made = json.dumps([str(path) for path in sorted(folder.glob("*-seed0"))])
    assert main(["compare", f"--runs={made}", f"--run_dir={workplace.folder}", "--name=gathered"]) == 0
    gathered = json.loads((workplace.folder / "gathered/comparison.json").read_text())
    assert [row["label"] for row in gathered["rows"]] == [row["label"] for row in rows["rows"]]


@fault("a run of a comparison that fails")
def test_a_run_that_fails_is_named_and_the_others_go_on(workplace, capsys):
    make = arguments(workplace, "--methods=last_layers,ia3", run_dir="failing", model__last_layers=9,
                     data__token_budget=2048)  # fmt: skip
    assert main(make) == 2
    captured = capsys.readouterr()
    assert "failed with exit code 2: neuroglot: error: --model.last_layers is 9; expected 1 to 3" in captured.out
    assert re.search(r"1 of 2 runs did not finish \(.*last_layers-lr1e-05-seed0/log.txt says why\)", captured.err)
    note(captured.err)
    assert "ia3" in captured.out


@pytest.mark.parametrize(
    ("asked", "changes", "pattern"),
    [
        (["--methods=subnetwrk"], {}, r"method is subnetwrk; .*did you mean 'subnetwork'"),
        (["--lrs=fast"], {}, r"--lrs has 'fast'; expected rates"), (["--lrs=-1"], {}, r"--lrs has '-1'"),
        (["--seeds=a"], {}, r"--seeds is a; expected numbers"),
        (["--methods=lora,lora"], {}, r"has lora-lr0.0001-seed0 twice"),
        (["--methods=ffn", "--model.rank=4"], {}, r"--model.rank is 4, a key that none of ffn has"),
        (["--methods=lora", "--model.rank=0"], {}, r"--model.rank is 0; expected a whole number"),
        (["--task=7", "--methods=ffn"], {}, r"--task is 7, but the comparison has the runs 0 to 0"),
        ([], {"language": "null"}, r"no language to compare methods for"),
    ],
)  # fmt: skip
@fault("compare {asked} {changes}")
def test_what_cannot_be_compared_is_one_line(asked, changes, pattern, workplace, capsys):
    refused(capsys, arguments(workplace, *asked, run_dir="never", **changes), pattern)
    assert not (workplace.folder / "never").exists()


@fault("compare --runs with a folder that holds no finished run")
def test_a_folder_without_a_finished_run_cannot_be_compared(capsys, tmp_path):
    refused(capsys, ["compare", f"--runs={tmp_path}"], r"holds no finished run")


def test_rates_are_absolute_or_multiples_of_each_methods_own():
    with refusal("twice"):
        make_grid(["subnetwork"], ["1e-4", "1x"], [0])
    assert [run.lr for run in make_grid(["full", "ssu"], ["10x", "2e-3"], [0])] == [1e-4, 2e-3, 5e-4, 2e-3]
    config = {"model": {"method": "subnetwork", "rank": 8, "engine": "masked", "lr": None, "seed": 0}, "name": None}
    assert GridRun("lora", 1e-4, 3).configure(config, "x")["model"]["engine"] == "packed"
    assert GridRun("lora", 1e-4, 3).configure(config, "x")["model"]["rank"] == 8
    assert GridRun("subnetwork", 1e-4, 3).configure(config, "x")["model"]["rank"] is None
    assert config["model"]["rank"] == 8

"""Kills at changes of the run folder, in all phases: the run ends as if nothing had happened; make torture has more."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("scene", ["neurons"])
def test_a_killed_run_ends_bit_for_bit_as_an_undisturbed_one(scene, tmp_path):
    """In processes of its own: a child of this one would inherit threads that are not there."""
    keys = ["--scenes", scene, "--changes", "2", "--random", "1", "--phases", "0", "--jobs", "1"]
    command = [sys.executable, "-m", "tests.torture", *keys, "--out", str(tmp_path / "found.json")]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["problems"] == []
    assert found["kills"] >= 2

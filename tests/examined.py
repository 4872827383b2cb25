"""The doctor, run in this process on the run of the workplace."""

import json

import pytest

from lightning_app.cli import main

EVERYTHING = {
    "python", "packages", "device", "cores", "host memory", "compiler", "processes", "run folder", "token cache",
    "hub cache", "hub", "token", "tokenising", "base", "settings", "tokenizer", "text", "pool", "flores", "disk",
    "memory",
}  # fmt: skip


@pytest.fixture
def doctor(workplace, capsys):
    """Runs the verb on the run of the workplace with changes, and returns its findings as (about, state, said)."""

    def run(*more, code=None, **changes):
        capsys.readouterr()
        keys = [each for each in workplace.adapt(**changes)[1:] if not each.startswith("--name")]
        ended = main(["doctor", *keys, *more, "--json"])
        said = capsys.readouterr()
        assert said.out, said.err
        found = [tuple(each.values()) for each in json.loads(said.out)]
        wrong = {about for about, state, *_ in found if state == "wrong"}
        assert ended == (2 if wrong else 0)
        assert all(about in said.err for about in wrong)
        return found

    return run


def wrong(found):
    return {about: "; ".join(filter(None, rest)) for about, state, *rest in found if state == "wrong"}

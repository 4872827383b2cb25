"""The doctor tells what of a run the hub gives, and asks it for seconds where it does not answer."""

import re

import pytest
from huggingface_hub import HfFileSystem, constants

from tests.conftest import LANGUAGES
from tests.examined import wrong


@pytest.fixture
def whole(server, workplace, monkeypatch):
    """The hub with the base, the corpus and the sentences of the workplace."""
    for kind, name, folder in (
        ("models", "owner/base", workplace.folder / "runs/base/model"),
        ("datasets", "owner/corpus", workplace.hub / "cis-lmu/GlotCC-V1"),
        ("datasets", "owner/flores", workplace.hub / "openlanguagedata/flores_plus"),
    ):
        for path in filter(lambda path: path.is_file(), folder.rglob("*")):
            server.files[f"{kind}/{name}/{path.relative_to(folder)}"] = path.read_bytes()
    configurations = "".join(f"- config_name: {c}\n  data_files: v1.0/{c}/*.parquet\n" for c in LANGUAGES)
    server.files["datasets/owner/corpus/README.md"] = f"---\nconfigs:\n{configurations}---\n".encode()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    # They keep what an earlier hub told them, and where it was.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    HfFileSystem.clear_instance_cache()
    return server


OF_HUB = ["--model.base=owner/base", "--data.source=owner/corpus", "--data.flores=owner/flores"]


def test_a_hub_that_has_everything_and_then_fails_for_good(doctor, whole, workplace, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "secret" * 6)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy.example:3128")
    found = doctor(*OF_HUB)
    assert wrong(found) == {}
    said = {about: said for about, _, said, _ in found}
    assert re.search("3 layers of 128 neurons, .* to download", said["base"])
    assert re.search("12.3k tokens wanted, 0 cached, about .* to read over the network", said["text"])
    # The target's is here already: what text is cached depends on the sentences that it must not hold.
    assert said["flores"] == "owner/flores: qah-Deva qaa-Latn; to download for qaa-Latn"
    assert said["token"] == "there is one, of HF_TOKEN"
    assert said["hub"].endswith(" s; HTTPS_PROXY proxy.example:3128")
    assert "secret" not in str(found)
    whole.fault, whole.asked = lambda number: (503, {}), 0
    found = doctor(*OF_HUB)
    assert (whole.asked, whole.waits) == (3, [1, 2])
    assert [said for about, state, said, _ in found if (about, state) == ("hub", "warning")]
    assert set(wrong(found)) == {"base", "text", "pool", "flores"}
    assert "weights" in wrong(found)["base"]
    found = doctor(f"--model.base={workplace.folder}/runs/base/model")
    assert wrong(found) == {}


@pytest.mark.parametrize("status", [401, 403])
def test_what_is_gated_is_named_with_where_to_accept_its_terms(status, doctor, whole):
    whole.gates |= {"models/owner/base": (status, "GatedRepo"), "datasets/owner/flores": (status, "GatedRepo")}
    said = wrong(doctor(*OF_HUB))
    assert set(said) == {"base", "flores"}
    assert "open https://huggingface.co/owner/base, accept its terms, then run `hf auth login`" in said["base"]
    assert "open https://huggingface.co/datasets/owner/flores, accept its terms" in said["flores"]


def test_what_is_not_on_the_hub_is_told_apart(doctor, whole):
    said = wrong(doctor(*OF_HUB, "--model.base=owner/bass", "--language=gla-Latn"))
    assert "there is no model owner/bass on the hub" in said["base"]
    assert "owner/corpus has no Scottish Gaelic" in said["text"]
    assert "FLORES (owner/flores) has no Scottish Gaelic" in said["flores"]
    said = wrong(doctor(*OF_HUB, "--model.revision=nowhere", "--data.revision=nothing"))
    assert "owner/base has no such revision; check --model.revision" in said["base"]
    assert "owner/corpus has no such revision; check --data.revision" in said["text"]


def test_a_hub_that_never_answers_is_asked_once(doctor, whole, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    whole.fault = lambda number: "hang"
    assert set(wrong(doctor(*OF_HUB))) == {"base", "tokenizer", "text", "flores"}
    assert (whole.asked, whole.waits) == (1, [])


def test_a_hub_that_fails_now_and_then_is_in_order(doctor, whole):
    whole.fault = lambda number: None if number % 3 else (503, {})
    assert wrong(doctor(*OF_HUB)) == {}
    assert set(whole.waits) in ({1}, {1, 2})  # the second where it fails twice in one and the same question

"""What the hub refuses: gated, private, missing and mistyped are told apart, each in one line with the way out."""

import pytest
from huggingface_hub import close_session

from datamodules import flores
from datamodules.sources import HubSource
from lightning_app.languages import find_language
from lightning_app.model.base import load_tokenizer
from tests.fake_hub import CORPUS, WELSH, read
from tests.faults import fault, refusal


@pytest.mark.parametrize("gate", [(401, "GatedRepo"), (403, "GatedRepo")])
@fault("a gated data set, {gate}")
def test_a_gated_data_set_is_not_called_missing(gate, server):
    server.gates[f"datasets/{CORPUS}"] = gate
    for action in (lambda: read(HubSource(CORPUS, WELSH, "main")), HubSource(CORPUS, WELSH, "main").sizes):
        with refusal(rf"{CORPUS} is gated: open https://.*/datasets/{CORPUS}, .*hf auth login"):
            action()


@fault("FLORES is gated")
def test_a_gated_flores_names_the_ways_around(server, tmp_path):
    server.gates["datasets/owner/flores"] = (403, "GatedRepo")
    with refusal(r"owner/flores is gated: .*or use other data: --data.flores tarball"):
        flores.read_flores("owner/flores", WELSH, "dev", tmp_path)


@fault("a data set that is not there, without and with a token")
def test_a_repository_that_is_not_there_may_be_private(server, monkeypatch):
    said = r"there is no data set owner/nothing on the hub, or "
    with refusal(f"{said}it is private: run `hf auth login` or set HF_TOKEN; check the name"):
        HubSource("owner/nothing", WELSH, "main").identity()
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    with refusal(f"{said}your token may not read it; check the name"):
        HubSource("owner/nothing", WELSH, "main").identity()


@fault("a revision, a language of the text, a language of FLORES that are not there")
def test_a_revision_and_a_language_that_are_not_there(server, tmp_path):
    for action in ("identity", "sizes"):
        with refusal(r"owner/corpus has no such revision; check --data.revision"):
            getattr(HubSource(CORPUS, WELSH, "nowhere"), action)()
    for action in (lambda source: source.sizes(), read):
        with refusal(r"owner/corpus has no Maltese.*check the code"):
            action(HubSource(CORPUS, find_language("mt"), "main"))
    with refusal(r"FLORES \(owner/corpus\) has no Welsh"):
        flores.read_flores(CORPUS, WELSH, "dev", tmp_path)


@fault("a token that the hub refuses, or that may not read the data set")
def test_a_token_that_the_hub_refuses(server):
    headers = {"X_Error_Message": "Invalid credentials in Authorization header"}
    server.fault = lambda number: (401, headers)
    with refusal(r"the hub refuses your token .401.; run `hf auth login` again"):
        HubSource(CORPUS, WELSH, "main").identity()
    server.fault = lambda number: (403, {})
    with refusal("your token may not read owner/corpus"):
        HubSource(CORPUS, WELSH, "main").identity()
    server.fault = lambda number: (418, {})
    with refusal("the hub answers 418 about owner/corpus"):
        HubSource(CORPUS, WELSH, "main").identity()


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("owner/typo", None, "there is no model owner/typo on the hub, or it is private: .*; check the name"),
        ("owner/model", "nowhere", "owner/model has no such revision; check --model.revision"),
        ("owner/gated", None, "owner/gated is gated: open https://huggingface.co/owner/gated, .*--model.base"),
    ],
)
@fault("a base that cannot be had: {name} at {revision}")
def test_a_base_that_cannot_be_had(name, revision, message, server):
    server.files["models/owner/model/config.json"] = b'{"model_type": "llama"}'
    server.gates["models/owner/gated"] = (401, "GatedRepo")
    with refusal(message) as error:
        load_tokenizer(name, revision)
    assert "cannot reach" not in str(error.value)


@pytest.mark.parametrize("value", ["garbage", "foo://me:secret@garbage", "http://[", "garbage:port"])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
@fault("{name} is {value}")
def test_garbage_in_proxy_variables_is_one_line(name, value, server, monkeypatch):
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "")
    close_session()
    with refusal("HTTP_PROXY") as error:
        HubSource(CORPUS, WELSH, "main").identity()
    assert "secret" not in str(error.value)

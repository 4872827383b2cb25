"""A hub on its bad days: slow, silent, refusing, cut off."""

import socket

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download
from transformers import AutoTokenizer

from datamodules import flores, token_cache
from datamodules.sources import HubSource
from lightning_app.hub import UnreachableError, client, hub_errors
from lightning_app.model.base import load_tokenizer
from tests.fake_hub import CORPUS, WELSH, read
from tests.faults import fault, note, refusal


def test_a_hub_without_faults_serves_all_with_plain_line_ends(server):
    assert read(HubSource(CORPUS, WELSH, "main")) == server.documents
    text_bytes, network_bytes = HubSource(CORPUS, WELSH, "main").sizes()
    assert text_bytes > 0
    assert network_bytes == sum(len(content) for name, content in server.files.items() if name.endswith("parquet"))
    assert server.waits == []


@pytest.mark.parametrize("fault", [(503, {}), (429, {"Retry-After": "3"}), "cut", "hang"])
@fault("every third answer of the hub is {fault}")
def test_every_third_request_failing_changes_no_byte(fault, server, tmp_path, monkeypatch, workplace, capsys):
    tokenizer = AutoTokenizer.from_pretrained(workplace.folder / "runs/base/model")
    monkeypatch.setattr("datamodules.sources._BATCH", 30)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3 if fault == "hang" else 10)
    caches = []
    for name in ("calm", "faulty"):
        source = HubSource(CORPUS, WELSH, "main")
        caches.append(token_cache.fill(tmp_path / name, source, tokenizer, 10**9, lambda n: int(n.sum()), "", False))
        server.asked, server.fault = 0, lambda number: None if number % 3 else fault
    for name in ("tokens.bin", "ends.bin"):
        assert (caches[0].folder / name).read_bytes() == (caches[1].folder / name).read_bytes()
    assert caches[0].documents == 200
    lines = capsys.readouterr().err.strip().split("\n")
    assert server.waits
    seconds = 3 if fault[0] == 429 else 1
    reasons = {"cut": "cut the connection", "hang": "did not answer within 0 s"}
    reason = reasons[fault] if fault in ("cut", "hang") else f"answers {fault[0]}"
    assert f"the hub {reason}; asking again in {seconds} s (2 of 5)" in lines
    note(lines[0])


@fault("a stream from the hub that breaks")
def test_a_stream_that_stops_goes_on_from_its_last_position(server, monkeypatch, capsys):
    monkeypatch.setattr("datamodules.sources._BATCH", 30)
    whole, failures = HubSource._read, iter([1, 1, 0])

    def stops(self, position, columns):
        fails = next(failures)
        with hub_errors(self.repository, "again"):
            for index, batch in enumerate(whole(self, position, columns)):
                if fails and index == 2:
                    raise ConnectionError("Server Disconnected")
                yield batch

    monkeypatch.setattr(HubSource, "_read", stops)
    assert read(HubSource(CORPUS, WELSH, "main")) == server.documents
    said = capsys.readouterr().err
    assert said.count("the hub stopped sending owner/corpus; asking again in 2 s (2 of 4)") == 2
    note(said.split("\n")[0])


@fault("a hub that fails for good")
def test_a_hub_that_fails_for_good_is_one_line_soon(server, capsys):
    server.fault = lambda number: (503, {})
    with refusal(r"cannot reach owner/corpus at http://\S+: it answers 503; .*command", UnreachableError):
        HubSource(CORPUS, WELSH, "main").identity()
    assert server.waits == [1, 2, 4, 8]
    assert server.asked == 5
    assert "the hub answers 503; asking again in 4 s (4 of 5)" in capsys.readouterr().err
    with pytest.raises(UnreachableError):  # it was told to be away: once is enough now
        HubSource(CORPUS, WELSH, "main").identity()
    assert server.asked == 6
    server.fault = lambda number: None
    assert HubSource(CORPUS, WELSH, "main").identity()["data_set"] == CORPUS


@fault("a hub that asks to wait for a day")
def test_a_wait_that_is_too_long_is_not_waited_for(server):
    server.fault = lambda number: (429, {"Retry-After": "86400"})
    with refusal("it answers 429 and asks to wait 86400 s", UnreachableError):
        HubSource(CORPUS, WELSH, "main").identity()
    assert (server.asked, server.waits) == (1, [])


@pytest.mark.parametrize("action", ["identity", "sizes", "batches", "download", "tarball", "tokenizer"])
@fault("a hub that accepts and never answers: {action}")
def test_a_hub_that_never_answers_holds_nobody(action, server, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    server.fault = lambda number: "hang"
    source = HubSource(CORPUS, WELSH, "main")
    actions = {
        "identity": source.identity,
        "sizes": source.sizes,
        "batches": lambda: read(source),
        "download": lambda: flores.read_flores("owner/flores", WELSH, "dev", tmp_path),
        "tarball": lambda: flores.read_flores(f"{server.url}/f.tar.gz", WELSH, "dev", tmp_path),
        "tokenizer": lambda: load_tokenizer("owner/model", None),
    }
    with refusal(r"cannot reach .*did not answer within 0 s"):
        actions[action]()
    assert server.waits[:4] == [1, 2, 4, 8]


@fault("nobody at the hub's address")
def test_nobody_there_is_one_line(server, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    with refusal("it cannot be connected to", UnreachableError):
        HubSource(CORPUS, WELSH, "main").identity()
    assert server.waits == [1, 2]


@fault("a hub that is away, and what is asked for is cached")
def test_what_is_cached_serves_while_the_hub_is_away(server, capsys):
    path = hf_hub_download(CORPUS, "README.md", repo_type="dataset")
    server.fault = lambda number: (503, {})
    assert hf_hub_download(CORPUS, "README.md", repo_type="dataset") == path
    note(capsys.readouterr().err.split("\n")[0])


def test_requests_know_their_bounds_and_dates(server, monkeypatch):
    from email.utils import formatdate

    seen = []
    sent = client.http.Client.send
    monkeypatch.setattr(
        client.http.Client, "send", lambda *a, **k: seen.append(a[1].extensions["timeout"]) or sent(*a, **k)
    )
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 7)
    server.fault = {
        1: (429, {"Retry-After": formatdate(client.time.time() + 60)}),
        2: (503, {"Retry-After": "soon"}),
    }.get
    server.fault = (lambda faults: lambda number: faults(number))(server.fault)
    HfApi(endpoint=server.url).dataset_info(CORPUS)
    assert seen == [{"connect": 7, "read": 7, "write": 7, "pool": 7}] * 3
    assert 50 < server.waits[0] <= 60
    assert server.waits[1] == 2

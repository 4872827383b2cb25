"""A hub on its bad days: slow, silent, refusing, cut off."""

import io
import os
import socket
import tarfile
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi, close_session, constants, hf_hub_download
from transformers import AutoTokenizer

from datamodules import flores, token_cache
from datamodules.sources import HubSource
from lightning_app.errors import UserError
from lightning_app.hub import UnreachableError, client, download, hub_errors
from lightning_app.languages import find_language
from lightning_app.model.base import load_tokenizer
from tests.fake_hub import Hub

WELSH = find_language("cy")
CORPUS = "owner/corpus"


def shard(documents):
    content = io.BytesIO()
    pq.write_table(pa.table({"content": documents, "other": ["x" * 50] * len(documents)}), content, row_group_size=40)
    return content.getvalue()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub that the real clients ask, with a data set in GlotCC's layout; waits are noted, not waited."""
    hub = Hub()
    documents = [f"dogfen {i}: bore da,\r\nsut wyt ti {i * i}?" for i in range(200)]
    for index in range(2):
        name = f"datasets/{CORPUS}/v1.0/cym-Latn/cym-Latn_{index}.parquet"
        hub.files[name] = shard(documents[index * 100 : (index + 1) * 100])
    card = "---\nconfigs:\n- config_name: cym-Latn\n  data_files: v1.0/cym-Latn/*.parquet\n---\n"
    hub.files[f"datasets/{CORPUS}/README.md"] = card.encode()
    hub.documents = [document.replace("\r\n", "\n") for document in documents]
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    for module in ("datasets.config.HF_ENDPOINT", "huggingface_hub.constants.ENDPOINT"):
        monkeypatch.setattr(module, hub.url)
    url = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(client._PatientClient, "given_up", {})
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub.waits = []
    monkeypatch.setattr(client.time, "sleep", hub.waits.append)
    close_session()
    yield hub
    hub.released.set()
    hub.shutdown()
    hub.server_close()
    close_session()


def read(source, position=None):
    return [document for documents, _ in source.batches(position) for document in documents]


def test_a_hub_without_faults_serves_all_with_plain_line_ends(server):
    assert read(HubSource(CORPUS, WELSH, "main")) == server.documents
    text_bytes, network_bytes = HubSource(CORPUS, WELSH, "main").sizes()
    assert text_bytes > 0
    assert network_bytes == sum(len(content) for name, content in server.files.items() if name.endswith("parquet"))
    assert server.waits == []


@pytest.mark.parametrize("fault", [(503, {}), (429, {"Retry-After": "3"}), "cut"])
def test_every_third_request_failing_changes_no_byte(fault, server, tmp_path, monkeypatch, workplace, capsys):
    tokenizer = AutoTokenizer.from_pretrained(workplace.folder / "runs/base/model")
    monkeypatch.setattr("datamodules.sources._BATCH", 30)
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
    seconds = 3 if fault != "cut" and fault[0] == 429 else 1
    reason = "cut the connection" if fault == "cut" else f"answers {fault[0]}"
    assert f"the hub {reason}; asking again in {seconds} s (2 of 5)" in lines


def test_a_stream_that_stops_goes_on_from_its_last_position(server, monkeypatch, capsys):
    monkeypatch.setattr("datamodules.sources._BATCH", 30)
    whole, failures = HubSource._read, iter([1, 1, 0])

    def stops(self, position):
        fails = next(failures)
        with hub_errors(self.repository, "again"):
            for index, batch in enumerate(whole(self, position)):
                if fails and index == 2:
                    raise ConnectionError("Server Disconnected")
                yield batch

    monkeypatch.setattr(HubSource, "_read", stops)
    assert read(HubSource(CORPUS, WELSH, "main")) == server.documents
    assert capsys.readouterr().err.count("the hub stopped sending owner/corpus; asking again in 2 s (2 of 4)") == 2


def test_a_hub_that_fails_for_good_is_one_line_soon(server, capsys):
    server.fault = lambda number: (503, {})
    with pytest.raises(UnreachableError, match=r"cannot reach owner/corpus at http://\S+: it answers 503; .*command"):
        HubSource(CORPUS, WELSH, "main").identity()
    assert server.waits == [1, 2, 4, 8]
    assert server.asked == 5
    assert "the hub answers 503; asking again in 4 s (4 of 5)" in capsys.readouterr().err
    with pytest.raises(UnreachableError):  # it was told to be away: once is enough now
        HubSource(CORPUS, WELSH, "main").identity()
    assert server.asked == 6
    server.fault = lambda number: None
    assert HubSource(CORPUS, WELSH, "main").identity()["data_set"] == CORPUS


def test_a_wait_that_is_too_long_is_not_waited_for(server):
    server.fault = lambda number: (429, {"Retry-After": "86400"})
    with pytest.raises(UnreachableError, match="it answers 429 and asks to wait 86400 s"):
        HubSource(CORPUS, WELSH, "main").identity()
    assert (server.asked, server.waits) == (1, [])


@pytest.mark.parametrize("action", ["identity", "sizes", "batches", "download", "tarball", "tokenizer"])
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
    with pytest.raises(UserError, match=r"cannot reach .*did not answer within 0 s") as error:
        actions[action]()
    assert "\n" not in str(error.value)
    assert server.waits[:4] == [1, 2, 4, 8]


def test_nobody_there_is_one_line(server, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    with pytest.raises(UnreachableError, match="it cannot be connected to"):
        HubSource(CORPUS, WELSH, "main").identity()
    assert server.waits == [1, 2]


def test_what_is_cached_serves_while_the_hub_is_away(server):
    path = hf_hub_download(CORPUS, "README.md", repo_type="dataset")
    server.fault = lambda number: (503, {})
    assert hf_hub_download(CORPUS, "README.md", repo_type="dataset") == path


@pytest.mark.parametrize("gate", [(401, "GatedRepo"), (403, "GatedRepo")])
def test_a_gated_data_set_is_not_called_missing(gate, server):
    server.gates[f"datasets/{CORPUS}"] = gate
    for action in (lambda: read(HubSource(CORPUS, WELSH, "main")), HubSource(CORPUS, WELSH, "main").sizes):
        with pytest.raises(UserError, match=rf"{CORPUS} is gated: open https://.*/datasets/{CORPUS}, .*hf auth login"):
            action()


def test_a_gated_flores_names_the_ways_around(server, tmp_path):
    server.gates["datasets/owner/flores"] = (403, "GatedRepo")
    with pytest.raises(UserError, match=r"owner/flores is gated: .*or use other data: --data.flores tarball"):
        flores.read_flores("owner/flores", WELSH, "dev", tmp_path)


def test_a_repository_that_is_not_there_may_be_private(server, monkeypatch):
    said = r"there is no data set owner/nothing on the hub, or "
    with pytest.raises(UserError, match=f"{said}it is private: run `hf auth login` or set HF_TOKEN; check the name"):
        HubSource("owner/nothing", WELSH, "main").identity()
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    with pytest.raises(UserError, match=f"{said}your token may not read it; check the name"):
        HubSource("owner/nothing", WELSH, "main").identity()


def test_a_revision_and_a_language_that_are_not_there(server, tmp_path):
    for action in ("identity", "sizes"):
        with pytest.raises(UserError, match=r"owner/corpus has no such revision; check --data.revision"):
            getattr(HubSource(CORPUS, WELSH, "nowhere"), action)()
    for action in (lambda source: source.sizes(), read):
        with pytest.raises(UserError, match=r"owner/corpus has no Maltese.*check the code"):
            action(HubSource(CORPUS, find_language("mt"), "main"))
    with pytest.raises(UserError, match=r"FLORES \(owner/corpus\) has no Welsh"):
        flores.read_flores(CORPUS, WELSH, "dev", tmp_path)


def test_a_token_that_the_hub_refuses(server):
    headers = {"X_Error_Message": "Invalid credentials in Authorization header"}
    server.fault = lambda number: (401, headers)
    with pytest.raises(UserError, match=r"the hub refuses your token .401.; run `hf auth login` again"):
        HubSource(CORPUS, WELSH, "main").identity()
    server.fault = lambda number: (403, {})
    with pytest.raises(UserError, match="your token may not read owner/corpus"):
        HubSource(CORPUS, WELSH, "main").identity()
    server.fault = lambda number: (418, {})
    with pytest.raises(UserError, match="the hub answers 418 about owner/corpus"):
        HubSource(CORPUS, WELSH, "main").identity()


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("owner/typo", None, "there is no model owner/typo on the hub, or it is private: .*; check the name"),
        ("owner/model", "nowhere", "owner/model has no such revision; check --model.revision"),
        ("owner/gated", None, "owner/gated is gated: open https://huggingface.co/owner/gated, .*--model.base"),
    ],
)
def test_a_base_that_cannot_be_had(name, revision, message, server):
    server.files["models/owner/model/config.json"] = b'{"model_type": "llama"}'
    server.gates["models/owner/gated"] = (401, "GatedRepo")
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(name, revision)
    assert "cannot reach" not in str(error.value)


@pytest.mark.parametrize("value", ["garbage", "foo://me:secret@garbage", "http://[", "garbage:port"])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
def test_garbage_in_proxy_variables_is_one_line(name, value, server, monkeypatch):
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "")
    close_session()
    with pytest.raises(UserError, match="HTTP_PROXY") as error:
        HubSource(CORPUS, WELSH, "main").identity()
    assert "secret" not in str(error.value)


def tarball(path):
    with tarfile.open(path, "w:gz") as archive:
        for split in ("dev", "devtest"):
            content = os.urandom(100_000) + b"\n"
            for name, body in ((f"x.{split}", content), (f"cym_Latn.{split}", f"bore {split}\n".encode())):
                member = tarfile.TarInfo(f"./flores200_dataset/{split}/{name}")
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
    return path.read_bytes()


def test_the_tarball_is_asked_for_again_and_goes_on_where_it_broke(server, tmp_path, capsys):
    url = f"{server.url}/datasets/owner/flores/resolve/main/f.tar.gz"
    server.files["datasets/owner/flores/f.tar.gz"] = tarball(tmp_path / "whole.tar.gz")
    server.fault = {1: (503, {}), 2: "cut", 3: "cut"}.get
    assert flores.read_flores(url, WELSH, "dev", tmp_path / "cache") == ["bore dev"]
    assert (tmp_path / "cache/flores/f.tar.gz").read_bytes() == (tmp_path / "whole.tar.gz").read_bytes()
    assert "127.0.0.1 stopped sending" in capsys.readouterr().err.replace("the hub", "127.0.0.1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "is no readable .tar.gz"),
        (lambda whole: whole[:-20], "is no readable .tar.gz"),
        (lambda whole: whole[:5000] + b"xxxx" + whole[5004:], "is no readable .tar.gz"),
        (lambda whole: b"<html>log in first</html>", "is no readable .tar.gz"),
        (lambda whole: None, "answers 404; check the address"),
    ],
)
def test_half_a_tarball_never_stays(content, message, server, tmp_path):
    server.files["datasets/owner/flores/other"] = b""
    server.files["datasets/owner/flores/f.tar.gz"] = content(tarball(tmp_path / "whole.tar.gz"))
    with pytest.raises(UserError, match=message):
        flores.read_flores(
            f"{server.url}/datasets/owner/flores/resolve/main/f.tar.gz", WELSH, "dev", tmp_path / "cache"
        )
    assert not [path for path in (tmp_path / "cache/flores").iterdir() if path.suffix != ".lock"]


def test_a_long_download_says_how_far_it_is(server, tmp_path, monkeypatch, capsys):
    server.files["datasets/owner/flores/f.bin"] = bytes(3 << 20)
    monkeypatch.setattr("lightning_app.hub.web_file._SAY_EVERY_S", 0.0)
    download(f"{server.url}/datasets/owner/flores/resolve/main/f.bin", tmp_path / "f.bin", "")
    assert (tmp_path / "f.bin").stat().st_size == 3 << 20
    assert "downloading f.bin: 1.0 of 3.1 MB" in capsys.readouterr().err


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

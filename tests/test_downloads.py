"""Downloads of the FLORES tarball: gone on with where they broke, and whole or not there."""

import io
import os
import tarfile

import pytest

from datamodules import flores
from lightning_app.hub import download
from tests.fake_hub import WELSH
from tests.faults import fault, note, refusal


def tarball(path):
    with tarfile.open(path, "w:gz") as archive:
        for split in ("dev", "devtest"):
            content = os.urandom(100_000) + b"\n"
            for name, body in ((f"x.{split}", content), (f"cym_Latn.{split}", f"bore {split}\n".encode())):
                member = tarfile.TarInfo(f"./flores200_dataset/{split}/{name}")
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
    return path.read_bytes()


@fault("the FLORES tarball breaks off twice while it is downloaded")
def test_the_tarball_is_asked_for_again_and_goes_on_where_it_broke(server, tmp_path, capsys):
    url = f"{server.url}/datasets/owner/flores/resolve/main/f.tar.gz"
    server.files["datasets/owner/flores/f.tar.gz"] = tarball(tmp_path / "whole.tar.gz")
    server.fault = {1: (503, {}), 2: "cut", 3: "cut"}.get
    assert flores.read_flores(url, WELSH, "dev", tmp_path / "cache") == ["bore dev"]
    assert (tmp_path / "cache/flores/f.tar.gz").read_bytes() == (tmp_path / "whole.tar.gz").read_bytes()
    said = capsys.readouterr().err
    assert "127.0.0.1 stopped sending" in said.replace("the hub", "127.0.0.1")
    note(said.strip().split("\n")[-1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "is no readable .tar.gz"),
        (lambda whole: whole[:-20], "is no readable .tar.gz"),
        (lambda whole: whole[:5000] + b"xxxx" + whole[5004:], "is no readable .tar.gz"),
        (lambda whole: b"<html>log in first</html>", "is no readable .tar.gz"),
        (lambda whole: None, "answers 404; check the address"),
    ],
    ids=["half of it", "without its end", "with other bytes inside", "a page of HTML", "not there"],
)
@fault("the FLORES tarball that was sent is {id}")
def test_half_a_tarball_never_stays(content, message, server, tmp_path):
    server.files["datasets/owner/flores/other"] = b""
    server.files["datasets/owner/flores/f.tar.gz"] = content(tarball(tmp_path / "whole.tar.gz"))
    with refusal(message):
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

"""A hub that serves what a test gives it, and fails as the test says."""

import hashlib
import io
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import close_session, constants

from lightning_app.hub import client
from lightning_app.languages import find_language

WELSH = find_language("cy")
CORPUS = "owner/corpus"


class Hub(ThreadingHTTPServer):
    """Serves files of data sets and models as the hub does, and what `fault` says instead.

    A fault takes the number of a file request, from 1 on, and returns None, "cut", "hang", or a status with headers.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.gates, self.fault, self.asked = {}, {}, lambda number: None, 0
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, code, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, query = urlsplit(self.path), parse_qs(urlsplit(self.path).query)
        parts = [unquote(part) for part in path.path.strip("/").split("/")]
        is_api = parts[0] == "api"
        kind, repo, rest = self.split(parts[1:] if is_api else parts)
        self.server.asked, self.prefix = self.server.asked + 1, f"{kind}/{repo}"
        if self.is_faulty():
            return None
        known = {
            name.removeprefix(f"{kind}/{repo}/") for name in self.server.files if name.startswith(f"{kind}/{repo}/")
        }
        if not known and f"{kind}/{repo}" not in self.server.gates:
            return self.reply(401, {}, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        revision = rest[1] if len(rest) > 1 else "main"
        commit = hashlib.sha1(repo.encode()).hexdigest()
        if revision not in ("main", commit):
            return self.reply(404, {}, X_Error_Code="RevisionNotFound")
        if is_api:
            return self.api(rest, known, commit, query)
        gate = self.server.gates.get(f"{kind}/{repo}")
        if gate and not rest[-1].endswith("README.md"):
            return self.reply(gate[0], {}, X_Error_Code=gate[1], X_Error_Message="Access is restricted.")
        return self.file(self.server.files.get(f"{kind}/{repo}/{'/'.join(rest[2:])}"), commit)

    def split(self, parts):
        if parts[0] in ("datasets", "models"):
            return parts[0], "/".join(parts[1:3]), parts[3:]
        return "models", "/".join(parts[:2]), parts[2:]

    def is_faulty(self):
        fault = self.server.fault(self.server.asked)
        self.cut = fault == "cut"
        if fault == "hang":
            self.server.released.wait(60)
            self.close_connection = True
            return True
        if isinstance(fault, tuple):
            self.reply(fault[0], {}, **fault[1])
            return True
        return False

    def api(self, rest, known, commit, query):
        if rest[:1] == ["tree"]:
            folder = "/".join(rest[2:])
            found = sorted(name for name in known if name.startswith(folder))
            if not found:
                return self.reply(404, {}, X_Error_Code="EntryNotFound")
            whole = query.get("recursive", ["false"])[0].lower() == "true"
            entries = {}
            for name in found:
                below = name[len(folder) :].strip("/").split("/")
                path = name if whole or len(below) == 1 else f"{folder}/{below[0]}".strip("/")
                entries[path] = {"type": "file" if path == name else "directory", "path": path, "oid": "0", "size": 0}
                if path == name:
                    entries[path]["size"] = len(self.server.files[f"{self.prefix}/{name}"])
            return self.reply(200, list(entries.values()))
        siblings = [{"rfilename": name} for name in sorted(known)]
        card = self.server.files.get(f"{self.prefix}/README.md", b"---\n{}\n---\n").split(b"---\n")[1]
        about = {"id": "x", "sha": commit, "private": False, "siblings": siblings, "tags": []}
        return self.reply(200, {**about, "cardData": yaml.safe_load(card)})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode()).get("paths", [])
        found = []
        for path in [asked] if isinstance(asked, str) else asked:
            for name, content in self.server.files.items():
                if name.endswith(f"/{path}"):
                    found.append({"type": "file", "path": path, "oid": "0", "size": len(content)})
                elif f"/{path}/" in name and not any(entry["path"] == path for entry in found):
                    found.append({"type": "directory", "path": path, "oid": "0"})
        self.reply(200, found)

    def file(self, content, commit):
        if content is None:
            return self.reply(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        code, headers = 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X_Repo_Commit": commit}
        if asked := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            code, headers["Content_Range"] = 206, f"bytes {start}-{end}/{len(content)}"
            content = content[start : end + 1]
        if self.cut and self.command == "GET":
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        return self.reply(code, content, **headers)


def shard(documents):
    content = io.BytesIO()
    pq.write_table(pa.table({"content": documents, "other": ["x" * 50] * len(documents)}), content, row_group_size=40)
    return content.getvalue()


def ask_hub(address, monkeypatch, folder):
    """Lets the real clients of this process ask a hub at an address, with nothing cached."""
    for module in ("datasets.config.HF_ENDPOINT", "huggingface_hub.constants.ENDPOINT"):
        monkeypatch.setattr(module, address)
    url = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "datasets")
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # it keeps the address that it had
    monkeypatch.setattr(client._PatientClient, "given_up", {})
    monkeypatch.delenv("HF_TOKEN", raising=False)
    close_session()


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
    ask_hub(hub.url, monkeypatch, tmp_path)
    hub.waits = []
    monkeypatch.setattr(client.time, "sleep", hub.waits.append)
    yield hub
    hub.released.set()
    hub.shutdown()
    hub.server_close()
    close_session()


def read(source, position=None):
    return [document for documents, _ in source.batches(position) for document in documents]

"""The hub of tests/fake_hub.py that also takes uploads: repositories, git blobs, large files and commits."""

import base64
import hashlib
import json
import re

import pytest
from huggingface_hub import close_session, constants

from tests.fake_hub import Answer

TOKEN = "hf_" + "secretsecret" * 3


class UploadAnswer(Answer):
    """Keeps large files until a commit names them; what a commit does not name is not in the repository."""

    def do_GET(self):  # noqa: N802
        if self.path.startswith("/api/whoami"):
            return self.reply(*((200, {"name": "owner", "type": "user"}) if self.is_known() else (401, {})))
        return super().do_GET()

    def do_POST(self):  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.posts.append(self.path)
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"warnings": [], "errors": []})
        if (status := self.server.refusals.get(self.kind())) is not None:
            return self.answer(status, {"error": "no"})
        if not self.is_known():
            return self.answer(401, {"error": "Invalid username or password."})
        return getattr(self, self.kind())(body)

    def kind(self):
        kinds = {"/repos/create": "create", "/preupload/": "preupload", "/objects/batch": "batch", "/commit/": "commit"}
        return next((kind for part, kind in kinds.items() if part in self.path), "other")

    def is_known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def answer(self, code, content):
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        self.server.repositories.setdefault(name, asked.get("visibility", "public"))
        self.answer(200, {"url": f"{self.server.url}/{name}", "name": name})

    def preupload(self, body):
        large = (".safetensors", ".gguf")
        files = [
            {"path": path, "shouldIgnore": False, "uploadMode": "lfs" if path.endswith(large) else "regular"}
            for path in (each["path"] for each in json.loads(body)["files"])
        ]
        self.answer(200, {"files": files})

    def batch(self, body):
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}", "header": {}}}}
            for each in json.loads(body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def do_PUT(self):  # noqa: N802
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        oid = self.path.rsplit("/", 1)[-1]
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer(400, {})
        self.server.large[oid] = content
        self.answer(200, {})

    def commit(self, body):
        repository = re.match(r"/api/models/([^/]+/[^/]+)/commit/", self.path)[1]
        if repository not in self.server.repositories:
            return self.answer(404, {"error": "no such repository"})
        for line in body.decode().strip().split("\n"):
            each = json.loads(line)
            if each["key"] == "file":
                self.keep(repository, each["value"]["path"], base64.b64decode(each["value"]["content"]))
            elif each["key"] == "lfsFile":
                self.keep(repository, each["value"]["path"], self.server.large[each["value"]["oid"]])
        self.answer(200, {"commitUrl": f"{self.server.url}/{repository}/commit/1", "commitOid": "1" * 40})

    def keep(self, repository, path, content):
        self.server.files[f"models/{repository}/{path}"] = content


@pytest.fixture
def taking(server, monkeypatch):
    """The hub, which takes uploads of who has the token."""
    server.RequestHandlerClass = UploadAnswer
    server.repositories, server.large, server.refusals, server.posts = {}, {}, {}, []
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    return server


def published(server, repository):
    """Returns the files of a repository by their names."""
    prefix = f"models/{repository}/"
    return {name.removeprefix(prefix): each for name, each in server.files.items() if name.startswith(prefix)}

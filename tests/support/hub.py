"""A Hub on the loopback interface: real bytes over HTTP, for the unmodified client of huggingface_hub.

Repositories are lists of commits in memory, each a mapping from path to bytes. `with loopback_hub() as hub:` serves
from a thread; a process with the variables of `hub.environment(home)` uses it.
"""

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_theone"
NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repo:
    """Commits by their names, and what branches point to."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        sha = secrets.token_hex(20)  # clients keep what they once saw of a commit
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class Hub:
    """The state of the server.

    Attributes:
        repos: By name.
        fail: Status codes that the next requests whose method and path match a pattern get, once each.
        cut: A pattern of requests whose connection is closed without an answer, for as long as it is set.
        requests: What was asked: method and path.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.forget()

    def forget(self) -> None:
        """Be as new."""
        self.repos: dict[str, Repo] = {}
        self.fail: list[tuple[str, int]] = []
        self.cut: str | None = None
        self.requests: list[str] = []
        self.lfs: dict[str, bytes] = {}

    def environment(self, home: Path) -> dict[str, str]:
        """Variables for a process that shall use this Hub, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": TOKEN,
            "OMP_NUM_THREADS": "1",
        }


def yaml_errors(content: str) -> list[str]:
    """What the Hub would refuse in the head of a card."""
    found = re.match(r"\s*---\n(.*?)\n---\s*(\n|$)", content, flags=re.DOTALL)
    if not found:
        return []
    try:
        data = yaml.safe_load(found.group(1)) or {}
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    errors = []
    for key, kinds in {
        "library_name": str,
        "pipeline_tag": str,
        "base_model": (str, list),
        "tags": list,
        "datasets": (str, list),
        "metrics": list,
        "model-index": list,
    }.items():
        if key in data and not isinstance(data[key], kinds):
            errors.append(f'"{key}" has the wrong type')
    if data.get("base_model_relation") not in (None, "finetune", "adapter", "merge", "quantized"):
        errors.append('"base_model_relation" must be one of finetune, adapter, merge, quantized')
    for model in data.get("model-index") or []:
        for result in model["results"]:
            if not (result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]):
                errors.append('"model-index" lacks a task or a data set')
            if not all("type" in metric and "value" in metric for metric in result["metrics"]):
                errors.append('"model-index" lacks the type or the value of a metric')
    return errors


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def answer(self, method: str) -> None:
        hub, url = self.hub, urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        else:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{method} {path}"
        hub.requests.append(request)
        if hub.cut and re.search(hub.cut, request):
            self.close_connection = True
            return
        for entry in hub.fail:
            if re.search(entry[0], request):
                hub.fail.remove(entry)
                self.send(entry[1], {"error": "on purpose"})
                return
        for wanted, pattern, handler in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and (method in wanted):
                parts = found.groupdict()
                repo = hub.repos.get(parts.get("repo", ""))
                locked = repo is None or (repo.private and not self.known() and "oid" not in parts)
                if "repo" in parts and locked:
                    self.send(
                        404 if self.known() or repo is None else 401, {"error": "no"}, {"X-Error-Code": "RepoNotFound"}
                    )
                    return
                if method == "POST" and not self.known() and "validate" not in path:
                    self.send(401, {"error": "Invalid username or password."})
                    return
                handler(self, **parts)
                return
        self.send(404, {"error": f"no route for {request}"})

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline().strip(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def send(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def whoami(self) -> None:
        answer = {"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
        self.send(200, answer) if self.known() else self.send(401, {"error": "Invalid user token."})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        if name in self.hub.repos:
            self.send(409, answer)
            return
        self.hub.repos[name] = Repo(private=bool(asked.get("private") or asked.get("visibility") == "private"))
        self.hub.repos[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.send(200, answer)

    def validate(self) -> None:
        errors = yaml_errors(json.loads(self.body)["content"])
        self.send(400 if errors else 200, {"errors": [{"message": e} for e in errors], "warnings": []})

    def branch(self, repo: str, revision: str) -> None:
        found = self.hub.repos[repo]
        if revision in found.branches:
            self.send(409, {"error": "exists"})
            return
        found.branches[revision] = found.branches["main"]
        self.send(200, {})

    def preupload(self, repo: str, revision: str) -> None:
        if not self.exists(repo, revision):
            return
        asked = json.loads(self.body)["files"]
        modes = {f["path"]: "lfs" if f["path"].endswith(".safetensors") else "regular" for f in asked}
        self.send(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def lfs_batch(self, repo: str) -> None:
        asked = json.loads(self.body)
        objects = []
        for item in asked["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/{repo}/lfs-objects/{item['oid']}"}}
            objects.append({**item, "authenticated": True, "actions": action})
        self.send(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, repo: str, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.send(400, {"error": "digest"})
            return
        self.hub.lfs[oid] = self.body
        self.send(200, {})

    def commit(self, repo: str, revision: str) -> None:
        if not self.exists(repo, revision):
            return
        found = self.hub.repos[repo]
        files, message = dict(found.files(revision)), ""
        for line in filter(None, self.body.splitlines()):
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.lfs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        as_pr = self.query.get("create_pr") == ["1"]
        branch = f"refs/pr/{len(found.commits)}" if as_pr else revision
        sha = found.commit(branch, files, message)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"}
        if as_pr:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{branch.rpartition('/')[2]}"
        self.send(200, answer)

    def info(self, repo: str, revision: str = "main") -> None:
        if not self.exists(repo, revision):
            return
        found = self.hub.repos[repo]
        sha = found.branches.get(revision, revision)
        siblings = [{"rfilename": name} for name in found.files(revision)]
        self.send(200, {"id": repo, "sha": sha, "siblings": siblings, "private": found.private, "tags": []})

    def tree(self, repo: str, revision: str, folder: str | None = None) -> None:
        if not self.exists(repo, revision):
            return
        entries = [
            {
                "type": "file",
                "path": name,
                "size": len(data),
                "oid": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
            }
            for name, data in self.hub.repos[repo].files(revision).items()
            if name.startswith(folder or "")
        ]
        self.send(200, entries)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        if not self.exists(repo, revision):
            return
        found = self.hub.repos[repo]
        sha = found.branches.get(revision, revision)
        data = found.files(revision).get(name)
        if data is None:
            self.send(404, {"error": "no"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part:
            first, last = int(part.group(1)), int(part.group(2) or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self.send(206, data[first : last + 1], headers)
        else:
            self.send(200, data, headers)

    def exists(self, repo: str, revision: str) -> bool:
        found = self.hub.repos[repo]
        if revision in found.branches or revision in found.commits:
            return True
        self.send(404, {"error": "no"}, {"X-Error-Code": "RevisionNotFound"})
        return False


ROUTES = (
    (("GET",), r"/api/whoami-v2", Handler.whoami),
    (("POST",), r"/api/repos/create", Handler.create),
    (("POST",), r"/api/validate-yaml", Handler.validate),
    (("POST",), rf"/api/models/{NAME}/branch/(?P<revision>.+)", Handler.branch),
    (("POST",), rf"/api/models/{NAME}/preupload/(?P<revision>.+)", Handler.preupload),
    (("POST",), rf"/api/models/{NAME}/commit/(?P<revision>.+)", Handler.commit),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (("PUT",), rf"/{NAME}/lfs-objects/(?P<oid>\w+)", Handler.lfs_put),
    (("GET",), rf"/api/models/{NAME}/tree/(?P<revision>refs/pr/\d+|[^/]+)(/(?P<folder>.+))?", Handler.tree),
    (("GET",), rf"/api/models/{NAME}", Handler.info),
    (("GET",), rf"/api/models/{NAME}/revision/(?P<revision>.+)", Handler.info),
    (("GET", "HEAD"), rf"/{NAME}/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<name>.+)", Handler.resolve),
)


@contextmanager
def loopback_hub() -> Iterator[Hub]:
    """Serve until the `with` ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Handler,), {}))
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass.hub = hub
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

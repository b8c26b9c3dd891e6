"""A small Hugging Face Hub on loopback: what huggingface_hub's client asks of the real one."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"
JSON = {"Content-Type": "application/json"}


@dataclass
class Hub:
    """Repositories by name, each a folder; `fetched` lists the files that were downloaded.

    `gated`: files of these are refused with 401 (no token), as the Hub does. `status`: every
    answer is that error, which `says` explains. A client may make repositories, which are put in
    `root`; `made` has what it asked for, by name. Files of more than `regular` bytes are uploaded
    as objects of Git LFS, and `commits` lists the changes of each commit.
    """

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: dict[str, int] = field(default_factory=dict)
    status: int | None = None
    says: str = ""
    fetched: list[str] = field(default_factory=list)
    url: str = ""
    root: Path = Path()
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    regular: int = 4000
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)

    def write(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a request that sends `body`."""
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        if self.status is not None:
            return self.answer(path, get=True)
        if method == "PUT":  # to the address that the batch below gave
            self.objects[hashlib.sha256(body).hexdigest()] = body
            return 200, {}, b""
        if parts == ["api", "validate-yaml"]:
            data = json.loads(body)["content"].split("---")[1]
            found = {"errors": [] if "license:" in data else [{"message": "no license"}]}
            return 400 if found["errors"] else 200, JSON, json.dumps(found).encode()
        if parts == ["api", "repos", "create"]:
            return self._make(json.loads(body))
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            sent = json.loads(body)["objects"]
            upload = {"upload": {"href": f"{self.url}/upload"}}
            return (
                200,
                JSON,
                json.dumps({"objects": [o | {"actions": upload} for o in sent]}).encode(),
            )
        if parts[4] == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] > self.regular else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, JSON, json.dumps({"files": files}).encode()
        assert parts[4] == "commit"
        return self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])

    def _make(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        name = f"{asked['organization']}/{asked['name']}"
        answer = JSON, json.dumps({"url": f"{self.url}/{name}"}).encode()
        if name in self.repositories:
            return 409, *answer
        self.made[name] = asked
        self.repositories[name] = self.root / name
        self.repositories[name].mkdir(parents=True)
        (self.repositories[name] / ".gitattributes").write_text("*.onnx filter=lfs\n")
        return 200, *answer

    def _commit(self, repo: str, lines: list[Any]) -> tuple[int, dict[str, str], bytes]:
        root = self.repositories[repo]
        for line in lines[1:]:
            value = line["value"]
            path = root / value["path"]
            if line["key"] == "deletedFile":
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "lfsFile":
                path.write_bytes(self.objects[value["oid"]])
            else:
                path.write_bytes(base64.b64decode(value["content"]))
        self.commits.append([f"{line['key']} {line['value'].get('path')}" for line in lines[1:]])
        url = f"{self.url}/{repo}/commit/{COMMIT}"
        return 200, JSON, json.dumps({"commitUrl": url, "commitOid": COMMIT}).encode()

    def answer(self, path: str, get: bool) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a request."""
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        if self.status is not None:
            body = json.dumps({"error": self.says}).encode() if self.says else b""
            return self.status, {"X-Error-Message": self.says} if self.says else {}, body
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        if len(parts) < 5:
            return 404, {}, b""
        return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), get)

    def _api(self, repo: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        if repo not in self.repositories:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if len(rest) > 1 and rest[1] not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        root = self.repositories[repo]
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        if rest[:1] == ["tree"]:
            body: Any = [
                {"type": "file", "oid": etag(path), "size": path.stat().st_size, "path": name}
                for path in files
                if (name := path.relative_to(root).as_posix())
            ]
        else:
            names = [path.relative_to(root).as_posix() for path in files]
            siblings = [{"rfilename": name} for name in names]
            body = {"id": repo, "sha": COMMIT, "siblings": siblings}
        return 200, JSON, json.dumps(body).encode()

    def _file(
        self, repo: str, revision: str, name: str, get: bool
    ) -> tuple[int, dict[str, str], bytes]:
        if repo not in self.repositories:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if repo in self.gated:
            return self.gated[repo], {"X-Error-Code": "GatedRepo"}, b""
        path = self.repositories[repo] / name
        if not path.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        if get:
            self.fetched.append(name)
        return 200, {"ETag": f'"{etag(path)}"', "X-Repo-Commit": COMMIT}, path.read_bytes()


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub that answers at its `url` until the block ends."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond(hub.answer(self.path, get=True))

        def do_HEAD(self) -> None:
            self._respond(hub.answer(self.path, get=False))

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            self._respond(hub.write(self.command, self.path, sent))

        def do_PUT(self) -> None:
            self.do_POST()

        def _respond(self, answer: tuple[int, dict[str, str], bytes]) -> None:
            status, headers, body = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

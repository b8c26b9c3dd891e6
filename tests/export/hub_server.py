"""A small Hugging Face Hub on loopback: what huggingface_hub's client asks of the real one."""

from __future__ import annotations

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


@dataclass
class Hub:
    """Repositories by name, each a folder; `fetched` lists the files that were downloaded.

    `gated`: files of these are refused with 401 (no token), as the Hub does. `status`: every
    answer is that error, which `says` explains.
    """

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: dict[str, int] = field(default_factory=dict)
    status: int | None = None
    says: str = ""
    fetched: list[str] = field(default_factory=list)
    url: str = ""

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
            body = {"id": repo, "sha": COMMIT, "siblings": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()

    def _file(
        self, repo: str, revision: str, name: str, get: bool
    ) -> tuple[int, dict[str, str], bytes]:
        if repo in self.gated:
            return self.gated[repo], {"X-Error-Code": "GatedRepo"}, b""
        path = self.repositories[repo] / name
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
            self._respond(get=True)

        def do_HEAD(self) -> None:
            self._respond(get=False)

        def _respond(self, get: bool) -> None:
            status, headers, body = hub.answer(self.path, get)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if get:
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

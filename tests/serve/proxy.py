"""A reverse proxy on a free port, which serves another server under a path."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

# Headers of one connection, which a proxy does not pass on.
_OWN = {"connection", "content-length", "host", "transfer-encoding"}


@contextmanager
def proxied(target: str, prefix: str = "", headers: dict[str, str] | None = None) -> Iterator[str]:
    """Serve the URL `target` below `prefix`; everything else is 404. Yields the proxy's URL.

    Requests get `headers` in addition. The host that the client asked for stands for {host} in
    their values, and is not passed on otherwise.
    """

    class Handler(BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            sent = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
            added = headers or {}
            sent |= {k: v.replace("{host}", self.headers["Host"]) for k, v in added.items()}
            server = HTTPConnection(urlsplit(target).netloc, timeout=120)
            server.request(self.command, self.path.removeprefix(prefix), body, sent)
            answer = server.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _OWN:
                    self.send_header(name, value)
            self.end_headers()  # HTTP/1.0: the body ends with the connection
            while part := answer.read1(65536):
                self.wfile.write(part)
            server.close()

        do_GET = do_POST = do_DELETE = _pass_on  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=[0.05])
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}{prefix}"
        finally:
            proxy.shutdown()
            thread.join()

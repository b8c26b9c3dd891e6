"""Clients that are slow, that disconnect, and that send malformed requests."""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from intaglio.serve.settings import ServerSettings
from intaglio.serve.transport.connections import uvicorn_config
from tests.serve.conftest import PROMPT, Running, fetch, serving, wait_until


def connect(server: Running, receive_buffer: int = 0) -> socket.socket:
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    url = httpx2.URL(server.url)
    client.connect((url.host, url.port))
    return client


def read_until(client: socket.socket, end: bytes) -> bytes:
    """Return everything that arrives until `end` has arrived."""
    seen = b""
    while end not in seen:
        part = client.recv(1 << 20)
        assert part, f"the server closed after {seen[-1000:]!r}"
        seen += part
    return seen


HALF = (
    b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b'Content-Length: 1000\r\n\r\n{"prompt"'
)


def test_an_unfinished_body_times_out(forked_bundle: Path) -> None:
    with serving(forked_bundle, limits={"body_seconds": 1}) as server:
        clients = [connect(server) for _ in range(20)]
        for client in clients:
            client.sendall(HALF)
        for client in clients:
            answer = client.makefile("rb").read()  # until the server closes
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"body_timeout" in answer
            client.close()
        with connect(server) as client:
            client.sendall(HALF)  # then it disconnects
        assert server.metric("rejections_total", code="body_timeout") == 20
        with connect(server) as client:
            client.sendall(HALF.replace(b"1000", b"30") + b': "a boot", "n": 1}  ')  # whole
            assert client.recv(12) == b"HTTP/1.1 200"
        assert server.metric("jobs_total") == 1


def test_an_unfinished_head_times_out(forked_bundle: Path) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving(forked_bundle, limits={"body_seconds": 1}) as server:
        clients = []
        for sent in (head, b"", b"G", head[:-2]):
            clients.append(connect(server))
            clients[-1].sendall(sent)
        read_until(clients[0], b'{"status":"ok"}')
        clients[0].sendall(head[:-2])
        for client in clients:
            answer = client.makefile("rb").read()  # until the server closes
            assert answer.startswith(b"HTTP/1.1 408")
            client.close()
        assert server.client.get("/healthz").status_code == 200


def test_a_slow_reader_does_not_slow_others(forked_bundle: Path) -> None:
    """The server stops writing until it reads again, and then sends every step that it missed."""
    steps = 400  # their events are more text than all buffers hold
    with serving(forked_bundle, send_buffer=4096, limits={"steps": steps}) as server:
        job = server.post_job(steps=steps)
        with connect(server, receive_buffer=4096) as slow:
            connections = server.server.server_state.connections
            wait_until(lambda: slow.getsockname() in {c.client for c in list(connections)})
            for connection in list(connections):
                connection.transport.set_write_buffer_limits(high=4096)
            url = f"/v1/jobs/{job['id']}/events"
            slow.sendall(f"GET {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            wait_until(lambda: server.job(job["id"])["status"] == "done")
            wait_until(lambda: sum(c.flow.write_paused for c in list(connections)) == 1)
            assert server.events(server.post_job(steps=1)["id"])[-1][0] == "done"
            seen = read_until(slow, b"event: done")
        assert seen.count(b"event: step") == steps
        assert 0 < seen.count(b"event: preview") < steps


EARLY = b"HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /healthz " + EARLY + b"Content-Length: 100\r\n\r\n", b"200"),
        (b"POST /none " + EARLY + b"Transfer-Encoding: chunked\r\n\r\n", b"404"),
        (b"POST /v1/jobs " + EARLY + b"Content-Length: 1000000\r\n\r\n", b"413"),
    ],
)
def test_an_answer_before_the_body_ends_the_connection(
    forked_bundle: Path, head: bytes, status: bytes
) -> None:
    with serving(forked_bundle, limits={"body_seconds": 0.3}) as server, connect(server) as client:
        client.settimeout(60)  # a failing test would block
        client.sendall(head)
        with client.makefile("rb") as answer:
            assert answer.readline().split()[1] == status
            with suppress(ConnectionError):  # the server may have closed it
                client.sendall(b"5")
                answer.read()  # until the server closes


def test_a_body_after_its_answer_is_skipped(server: Running) -> None:
    """The next request on the connection is answered."""
    with connect(server) as client:
        client.sendall(b"GET /healthz " + EARLY + b"Content-Length: 3\r\n\r\n")
        read_until(client, b'{"status":"ok"}')
        client.sendall(b"body"[:3] + b"GET /readyz " + EARLY + b"\r\n")
        assert read_until(client, b'{"status":"ok"}').startswith(b"HTTP/1.1 200")


@pytest.mark.reported(
    "kserve/kserve#5446", "vllm-project/vllm#18472", "open-webui/open-terminal#148"
)
def test_an_idle_connection_is_kept_for_a_while(forked_bundle: Path) -> None:
    """A connection can be used again until `keep_alive` seconds after its last answer."""
    # Common load balancers keep connections for 60 seconds.
    assert uvicorn_config(FastAPI(), ServerSettings()).timeout_keep_alive > 60
    with serving(forked_bundle, keep_alive=0.5) as server, connect(server) as client:
        for _ in range(2):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            read_until(client, b'{"status":"ok"}')
        client.settimeout(4)  # uvicorn's own default is 5 seconds
        assert client.recv(1) == b""


def test_head_is_answered_wherever_get_is(server: Running) -> None:
    """HEAD has the status and the headers of GET, without the body."""
    job = server.post_job(steps=1)["id"]
    server.events(job)
    (image,) = server.job(job)["images"]
    values = {"job_id": job, "model": "tiny", "name": image.split("/")[-1].removesuffix(".png")}
    paths = server.client.get("/openapi.json").json()["paths"]
    described = [path.format(**values) for path, routes in paths.items() if "get" in routes]
    assert len(described) > 5
    for path in (*described, "/", "/main.js", "/docs", "/openapi.json", "/v1/jobs/none"):
        get, head = server.client.get(path), server.client.head(path)
        assert (path, head.status_code, head.content) == (path, get.status_code, b"")
        for name in ("content-type", "content-length") if path != "/metrics" else ():
            assert head.headers.get(name) == get.headers.get(name)


def test_connections_have_a_limit(forked_bundle: Path) -> None:
    """A connection above the limit gets an error; the open ones continue."""
    with serving(forked_bundle, limits={"connections": 3, "body_seconds": 600}) as server:
        server.client.close()
        connections = server.server.server_state.connections
        wait_until(lambda: not connections)
        open_clients = [connect(server) for _ in range(3)]
        wait_until(lambda: len(connections) == 3)
        refused = fetch(f"{server.url}/healthz")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "connections_full"
        for client in open_clients:
            client.sendall(b"GET /healthz " + EARLY + b"\r\n")
            read_until(client, b'{"status":"ok"}')
        open_clients.pop().close()
        wait_until(lambda: fetch(f"{server.url}/healthz").status_code == 200)
        for client in open_clients:
            client.close()


@pytest.mark.parametrize(("proxies", "client"), [(["127.0.0.1"], "192.0.2.7"), ([], "127.0.0.1")])
def test_a_trusted_proxy_names_the_client(
    forked_bundle: Path, caplog: pytest.LogCaptureFixture, proxies: list[str], client: str
) -> None:
    caplog.set_level("INFO", "intaglio.serve")
    with serving(forked_bundle, proxies=proxies) as server:
        headers = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
        body = {"prompt": PROMPT, "steps": 1}
        answer = server.client.post("/v1/images/generations", json=body, headers=headers)
        scheme = httpx2.URL(answer.json()["data"][0]["url"]).scheme
    assert scheme == ("https" if proxies else "http")
    fields = [vars(record).get("fields", {}) for record in caplog.records]
    assert [line["client"] for line in fields if line.get("method") == "POST"] == [client]


BODY = b'{"prompt": "a boot", "n": 1, "size": "32x32", "steps": 2, "cfg_scale": [1, 2], "seed": 7}'
PIECES = [
    b"", b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\ud800", b"\x00", b"\xff", b"-1",
    b"1e999", b"NaN", b"null", b"true", b"9" * 400, b"[" * 300, b"steps", b"\"n\": 0",
]  # fmt: skip


@pytest.mark.slow
def test_ten_thousand_malformed_requests(forked_bundle: Path) -> None:
    """Each gets an answer in OpenAI's form, and the server still works afterwards."""
    with serving(forked_bundle, limits={"steps": 1, "body_bytes": 1000}) as server:
        draw = random.Random(0)
        statuses: Counter[int] = Counter()
        # This client is ten times faster than that of the other tests.
        client = HTTPConnection(httpx2.URL(server.url).netloc.decode())
        for number in range(10_000):
            body = bytearray(BODY)
            for _ in range(draw.randint(1, 4)):
                start = draw.randrange(len(body) + 1)
                body[start : start + draw.randint(0, 6)] = draw.choice(PIECES)
            path = ("/v1/jobs", "/v1/images/generations")[number % 2]
            client.request("POST", path, bytes(body), {"Content-Type": "application/json"})
            answer = client.getresponse()
            assert json.load(answer)["error"]["message"], body  # a valid body exceeds a limit
            statuses[answer.status] += 1
        client.close()
        assert set(statuses) <= {400, 413}, statuses
        assert server.metric("jobs_total") == 0
        assert server.metric("rejections_total") == 10_000
        drawn = server.client.post("/v1/images/generations", json={"prompt": PROMPT, "steps": 1})
        assert drawn.status_code == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000,  # without a space
    ],
)
def test_invalid_http_is_rejected(server: Running, request_bytes: bytes) -> None:
    with connect(server) as client:
        client.sendall(request_bytes)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1000)[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 431"}
    assert server.client.get("/healthz").status_code == 200

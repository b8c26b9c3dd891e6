"""Measure a server under load: throughput, latency, queueing and memory, for docs/performance.md.

Usage: python -m tests.serve.load BUNDLE [-o docs] [--requests N] [--memory N]

The server runs in a process of its own. Each client is a thread that asks for its next image when
it has the last one. All traffic stays on the loopback address. Run this on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

import httpx2

from benchmarks.bench.document import write_section

CLIENTS = (1, 2, 4, 8)
ROUNDS = 3
# Requests differ in guidance, steps and seed, but not in size.
MIX: list[dict[str, Any]] = [
    {},
    {"cfg_scale": 1, "dg_scale": 0},
    {"dg_scale": 0},
    {"cfg_window": [0, 0.5], "dg_window": [0.25, 1]},
]
PROMPTS = ["a dress", "a dark ankle boot", "a bag with a handle", "a coat"]


@dataclass
class Asked:
    """One request.

    Attributes:
        latency: seconds until its image arrived. queued, service: seconds in the queue, in a batch.
        place: its position in the queue when it was submitted.
    """

    number: int
    latency: float
    queued: float
    service: float
    place: int
    png: bytes


@dataclass
class Point:
    """The measurements with one number of clients. Times are seconds.

    Attributes:
        images_per_second: of each round.
        speedup: of each round, relative to the round without batching.
        queue_ratio_p99: of the time in the queue, divided by mean service time times position.
    """

    batching: bool
    clients: int
    requests: int
    images_per_second: list[float]
    speedup: list[float]
    latency_p50: float
    latency_p99: float
    queued_p99: float
    queue_ratio_p99: float


@contextmanager
def server(bundle: Path, max_batch: int) -> Iterator[tuple[str, int]]:
    """Run a server, and yield its URL and process id."""
    arguments = ["serve", str(bundle), "--port", "0", "--max-batch", str(max_batch)]
    with subprocess.Popen(
        [sys.executable, "-m", "intaglio", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().split()[-1], process.pid
        finally:
            process.terminate()


def fields(number: int) -> dict[str, Any]:
    """Return the fields of the request with that number."""
    prompt = PROMPTS[number % len(PROMPTS)]
    return {"prompt": prompt, "seed": number, "steps": 8 + number % 5, **MIX[number % len(MIX)]}


def ask(client: httpx2.Client, number: int) -> Asked:
    """Request one image, and wait until its PNG file arrives."""
    began = time.monotonic()
    made = client.post("/v1/jobs", json={**fields(number), "preview": False})
    made.raise_for_status()
    job = made.json()
    client.get(f"/v1/jobs/{job['id']}/events").raise_for_status()  # returns when the job has ended
    ended = client.get(f"/v1/jobs/{job['id']}").json()
    assert ended["status"] == "done", ended
    png = client.get(ended["images"][0]).content
    assert png.startswith(b"\x89PNG")
    latency, queued = time.monotonic() - began, ended["timings"]["queued"]
    return Asked(number, latency, queued, ended["timings"]["denoise"], job["position"], png)


def drive(url: str, clients: int, requests: int) -> tuple[list[Asked], float]:
    """Return all requests, and the seconds that they took together."""
    numbers = iter(range(requests))
    lock, asked, failed = threading.Lock(), [], []

    def run() -> None:
        with httpx2.Client(base_url=url, timeout=600) as client:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                try:
                    asked.append(ask(client, number))
                except Exception as error:
                    failed.append(error)
                    return

    threads = [threading.Thread(target=run) for _ in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return asked, time.monotonic() - began


def p99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98]


def say(what: str) -> None:
    """Print what begins now, since it takes minutes."""
    print(what, file=sys.stderr, flush=True)


def measure(bundle: Path, clients: int, requests: int) -> list[Point]:
    """Return two rows of the table, without and with batching, measured in alternating rounds."""
    asked: dict[bool, list[Asked]] = {False: [], True: []}
    rates: dict[bool, list[float]] = {False: [], True: []}
    with server(bundle, 1) as (single, _), server(bundle, 8) as (batching, _):
        urls = {False: single, True: batching}
        for url in urls.values():
            drive(url, 1, 1)
        for number in range(ROUNDS):
            for on, url in urls.items():
                say(f"{clients} clients, batching {'on' if on else 'off'}, round {number + 1}")
                answers, seconds = drive(url, clients, max(1, requests // ROUNDS))
                asked[on] += answers
                rates[on].append(len(answers) / seconds)
    return [point(on, clients, asked[on], rates[on], rates[False]) for on in urls]


def point(
    batching: bool, clients: int, asked: list[Asked], rates: list[float], single: list[float]
) -> Point:
    """Return a row. `rates` and `single` are images per second, here and without batching."""
    service = mean(one.service for one in asked)
    latencies = [one.latency for one in asked]
    return Point(
        batching=batching,
        clients=clients,
        requests=len(asked),
        images_per_second=rates,
        speedup=[rate / other for rate, other in zip(rates, single, strict=True)],
        latency_p50=median(latencies),
        latency_p99=p99(latencies),
        queued_p99=p99([one.queued for one in asked]),
        queue_ratio_p99=p99([one.queued / (service * one.place) for one in asked]),
    )


def memory(bundle: Path, requests: int) -> list[tuple[int, int]]:
    """Return the resident bytes of the server after each tenth of the requests."""
    found: list[tuple[int, int]] = []
    with server(bundle, 8) as (url, process):
        for done in range(requests // 10, requests + 1, requests // 10):
            say(f"memory, {done} requests")
            drive(url, 8, requests // 10)
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            found.append((done, pages * os.sysconf("SC_PAGE_SIZE")))
    return found


def page(
    points: list[Point], resident: list[tuple[int, int]], bundle: str, remark: str = ""
) -> str:
    """Return the section "Server load" of docs/performance.md."""
    lines = [
        "## Server load",
        "",
        f"`python -m tests.serve.load` measured this on {bundle}, with clients and server on one"
        f" machine, and wrote this section and [its data](serving-load.json). {remark}".rstrip(),
        "",
        "Each client asks for its next image when it has the last one. The requests differ in"
        f" guidance, steps (8 to 12) and seed. Each row has {points[0].requests} requests, in"
        f" {ROUNDS} rounds that alternate between batching and no batching. The table gives medians"
        " and, in brackets, extremes; times are in seconds.",
        "",
        "| batching | clients | images/s | speedup | latency p50 | latency p99 | queue p99 |"
        " p99 of queue / (mean service x place) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {'on' if p.batching else 'off'} | {p.clients} | {median(p.images_per_second):.2f} |"
        f" {median(p.speedup):.2f} [{min(p.speedup):.2f}, {max(p.speedup):.2f}] |"
        f" {p.latency_p50:.2f} | {p.latency_p99:.2f} | {p.queued_p99:.2f} |"
        f" {p.queue_ratio_p99:.2f} |"
        for p in points
    ]
    if resident:
        lines += ["", "| requests | resident memory, MB |", "|---|---|"]
        lines += [f"| {done} | {size / 1e6:.0f} |" for done, size in resident]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs"))
    parser.add_argument("--requests", type=int, default=120, help="for each row of the table")
    parser.add_argument(
        "--memory", type=int, default=1000, help="requests for the memory table; 0: no table"
    )
    options = parser.parse_args()
    points = [p for n in CLIENTS for p in measure(options.bundle, n, options.requests)]
    resident = memory(options.bundle, options.memory) if options.memory else []
    bundle, remark = options.bundle.name, f"The machine has {os.cpu_count()} cores."
    found = {
        "bundle": bundle,
        "remark": remark,
        "points": [asdict(point) for point in points],
        "resident": resident,
    }
    (options.output / "serving-load.json").write_text(json.dumps(found, indent=1) + "\n")
    text = page(points, resident, bundle, remark)
    write_section(options.output / "performance.md", "load", text)


if __name__ == "__main__":
    main()

"""Who is next: clients take turns, each with its oldest request."""

from __future__ import annotations

from collections import deque
from itertools import chain, zip_longest

from intaglio.serve.job import Job


class FairQueue:
    """Requests that wait for one model. Not for several threads at once."""

    def __init__(self) -> None:
        # In the order of their turns; no client without requests.
        self._clients: dict[str, deque[Job]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def add(self, job: Job) -> None:
        self._clients.setdefault(job.client, deque()).append(job)

    def remove(self, job: Job) -> bool:
        """Takes `job` out, wherever it stands. False: it was not there."""
        waiting = self._clients.get(job.client, deque())
        if job not in waiting:
            return False
        waiting.remove(job)
        if not waiting:
            del self._clients[job.client]
        return True

    def take(self, job: Job) -> bool:
        """Takes `job` out to run it: its client's next turn comes after everybody else's."""
        if not self.remove(job):
            return False
        if rest := self._clients.pop(job.client, None):
            self._clients[job.client] = rest
        return True

    def order(self) -> list[Job]:
        """All of them, the next one first."""
        rounds = zip_longest(*self._clients.values())
        return [job for job in chain.from_iterable(rounds) if job]

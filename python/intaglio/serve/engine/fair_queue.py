"""A queue in which clients take turns, each with its oldest request."""

from __future__ import annotations

from collections import deque
from itertools import chain, zip_longest

from intaglio.serve.engine.job import Job


class FairQueue:
    """The waiting requests of one model. Not safe for use from several threads at once."""

    def __init__(self) -> None:
        # Clients that have requests, in the order of their turns.
        self._clients: dict[str, deque[Job]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def add(self, job: Job) -> None:
        self._clients.setdefault(job.client, deque()).append(job)

    def remove(self, job: Job) -> bool:
        """Remove `job` from any position. Return whether it was in the queue."""
        waiting = self._clients.get(job.client, deque())
        if job not in waiting:
            return False
        waiting.remove(job)
        if not waiting:
            del self._clients[job.client]
        return True

    def take(self, job: Job) -> bool:
        """Remove `job` to run it, which moves its client's next turn behind all other clients.

        Return whether it was in the queue.
        """
        if not self.remove(job):
            return False
        if rest := self._clients.pop(job.client, None):
            self._clients[job.client] = rest
        return True

    def order(self) -> list[Job]:
        """Return all jobs in the order in which they are next."""
        rounds = zip_longest(*self._clients.values())
        return [job for job in chain.from_iterable(rounds) if job]

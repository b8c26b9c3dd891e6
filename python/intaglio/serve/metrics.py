"""Metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from intaglio import _core

# Bounds from one step of a small model to a whole run of a large one.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _Collected(Collector):
    """Metrics whose values are read at each scrape."""

    def __init__(self, read: Callable[[], Iterator[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        return self._read()


class Metrics:
    """The metrics of one server. The module that does the counted work raises the counter."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"intaglio_{name}", text, labels, registry=self.registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            full = f"intaglio_{name}_seconds"
            return Histogram(full, text, labels, buckets=_SECONDS, registry=self.registry)

        self.wait = seconds("queue_wait", "Time from acceptance to joining a batch", "model")
        self.stage = seconds(
            "stage", "Time of a request in each stage; network is part of denoise", "model", "stage"
        )
        self.run = seconds("batch_step", "One evaluation of all members of a batch", "model")
        self.steps = counter("steps", "Solver steps, over all requests", "model")
        self.evaluations = counter(
            "evaluations", "Evaluations of the model, over all finished requests", "model"
        )
        self.rows = counter(
            "rows", "Rows that ran through the transformer's blocks before and after the fork",
            "model", "blocks",
        )  # fmt: skip
        self.branches = counter(
            "branch_steps", "Steps that ran the branch, over all requests", "model", "branch"
        )
        self.jobs = counter("jobs", "Finished requests by status", "model", "status")
        self.lost = counter("lost_attempts", "Attempts whose replica died", "model")
        self.images = counter("images", "Generated images", "model")
        self.rejections = counter("rejections", "Rejected requests by error code", "code")

    def read(self, read: Callable[[], Iterator[Metric]]) -> None:
        """Add metrics that `read` returns at each scrape."""
        self.registry.register(_Collected(read))

    def generated(self, model: str, generation: _core.Generation, text: float, png: float) -> None:
        """Count the work of one finished request; `text` and `png` are seconds."""
        timings = generation.timings
        stages = {
            "text": text, "denoise": timings.denoise, "network": timings.network,
            "vae": timings.vae, "png": png,
        }  # fmt: skip
        for stage, spent in stages.items():
            self.stage.labels(model, stage).observe(spent)
        self.evaluations.labels(model).inc(generation.evaluations)
        self.rows.labels(model, "base").inc(generation.base_rows)
        self.rows.labels(model, "forked").inc(generation.forked_rows)
        ran = {
            "conditional": len(generation.step_seconds) - len(generation.skipped_steps),
            "unconditional": len(generation.unconditional_steps),
            "degraded": len(generation.degraded_steps),
        }
        for branch, steps in ran.items():
            self.branches.labels(model, branch).inc(steps)
        self.images.labels(model).inc(len(generation.images))

    def page(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def gauge(name: str, text: str, values: dict[str, float]) -> Metric:
    """Return a gauge with one value per model."""
    family = GaugeMetricFamily(f"intaglio_{name}", text, labels=["model"])
    for model, value in values.items():
        family.add_metric([model], value)
    return family


def lookups(hits: int, misses: int) -> Metric:
    """Return the number of lookups in the embedding cache, by result."""
    family = CounterMetricFamily(
        "intaglio_embedding_cache", "Lookups of prompt embeddings", labels=["result"]
    )
    family.add_metric(["hit"], hits)
    family.add_metric(["miss"], misses)
    return family

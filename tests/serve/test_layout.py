"""The directions of imports between the server's packages (docs/decisions/0019)."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

SERVE = Path(__file__).parents[2] / "python" / "intaglio" / "serve"
# From the bottom to the top. A module imports from its own layer and those before it.
LAYERS = [
    {"errors", "settings", "logs", "metrics"},
    {"transport"},
    {"models"},
    {"engine"},
    {"api"},
    {"replica"},
    {"app", "cli", "local_replicas", "ray_app", "triton_model", "triton_tensors"},
]


def imports() -> dict[str, set[str]]:
    """The server's modules that each of them imports, by names without `intaglio.serve`."""
    paths = [path for path in SERVE.rglob("*.py") if path.name != "__init__.py"]
    names = {".".join(path.relative_to(SERVE).with_suffix("").parts): path for path in paths}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            source = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if isinstance(node, ast.ImportFrom) and source.startswith("intaglio.serve"):
                module = source.removeprefix("intaglio.serve").lstrip(".")
                members = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
                found[name] |= {m if m in names else module for m in members}
    return found


def test_modules_import_lower_layers_only() -> None:
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if level[other.split(".")[0]] > level[name.split(".")[0]]
    ]
    assert wrong == []
    assert {name.split(".")[0] for name in imports()} == set(level)


def test_there_is_no_import_circle() -> None:
    order = list(TopologicalSorter(imports()).static_order())  # raises CycleError
    assert order.index("engine.inbox") < order.index("engine.worker")


def test_the_worker_does_not_know_the_queue() -> None:
    found = imports()
    for runner in ("engine.worker", "engine.dispatcher"):
        assert "engine.request_queue" not in found[runner]
        assert runner not in found["engine.request_queue"]

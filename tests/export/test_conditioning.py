"""What is computed ahead of the loop, and the rest: together they are the diffusers model."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
import torch

from intaglio_export.adapters import Adapter, adapter_for
from intaglio_export.adapters.packing import positions
from intaglio_export.adapters.references import ReferencesAdapter
from intaglio_export.bundle.verify import open_session
from intaglio_export.bundle.writing import make_graph, save_graph
from intaglio_export.networks.transformer_graphs import transformer_units
from tests.bundles import BLOCK, bundle
from tests.export.test_bundle import relative
from tests.families import FAMILIES

TOLERANCE = 1e-5
# Images of 12 x 16 latent cells, unless the model has one size.
GRID = (6, 8)
# Weights in the loop that may hold these words all the same: FLUX calls its patches embedded.
IMAGE = ("x_embedder", "pos_embed")


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def adapter(family: str) -> Adapter:
    pipeline = FAMILIES[family].make()
    adapter = adapter_for(type(pipeline).__name__)
    assert adapter is not None
    return adapter(pipeline)


def random_inputs(adapter: Adapter, rows: int) -> dict[str, torch.Tensor]:
    """Of the whole transformer, rows that have nothing in common."""
    generator = torch.Generator().manual_seed(3)
    patch = adapter.patch_size
    sizes = {"base_rows": rows, "text_length": 5, "tokens": math.prod(GRID)}
    sizes |= {"latent_height": GRID[0] * patch, "latent_width": GRID[1] * patch}
    inputs = {}
    for spec in adapter.inputs():
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]
        inputs[spec.role] = torch.randn(shape, generator=generator)
    inputs["timestep"] = 1000 * torch.rand(rows, generator=generator)
    if "class" in inputs:
        inputs["class"] = torch.arange(rows)
    if "text_mask" in inputs:
        inputs["text_mask"] = (inputs["text_mask"] > -1).float()
        inputs["text_mask"][:, 0] = 1
    if "position" in inputs:
        inputs["position"] = positions(*GRID)
    if isinstance(adapter, ReferencesAdapter):  # tests/export/test_references.py has some
        inputs |= {"references": inputs["latent"][:, :0], "reference_position": torch.zeros(0, 3)}
    return inputs


@torch.no_grad()
@pytest.mark.parametrize("layout", ["forked", pytest.param("dual", marks=pytest.mark.exports)])
def test_both_parts_equal_the_diffusers_model(
    family: str, adapter: Adapter, layout: str, tmp_path: Path
) -> None:
    """Compare what the graphs compute; the op leaves every token alone, so branches are rows.

    The family's bundle has the graphs of layout forked, and conditioning is the same in both.
    """
    exported = bundle(family) / "transformer"
    names = ["conditioning", "forked"] if layout == "forked" else ["conditioning"]
    sessions = {name: open_session(exported / f"{name}.onnx") for name in names}
    if layout == "dual":
        units = transformer_units(adapter, layout, BLOCK)
        for name in ("base", "degraded"):
            save_graph(make_graph(units[name]), tmp_path / f"{name}.onnx")
            sessions[name] = open_session(tmp_path / f"{name}.onnx")
    inputs = random_inputs(adapter, 3)
    expected = adapter.predict(inputs)
    order = torch.tensor([2, 0, 1])  # of conditions: none of the loop's rows is in its place
    ahead = sessions.pop("conditioning")
    feeds = {v.name: inputs[v.name][order].numpy() for v in ahead.get_inputs()}
    for part in ahead.get_outputs():
        (made,) = ahead.run([part.name], feeds)
        inputs[part.name] = torch.from_numpy(made)[order.argsort()]
    mask = torch.ones(adapter.channels)
    for name, session in sessions.items():
        branch = torch.tensor([0, 1, 2, 1, 2]) if name == "forked" else torch.arange(3)
        for value in session.get_inputs():
            if value.name == "keep":
                tokens = value.shape[1] if isinstance(value.shape[1], int) else math.prod(GRID)
                inputs["keep"] = torch.ones(len(branch), tokens)
                inputs["source"] = torch.zeros((len(branch), tokens), dtype=torch.int64)
        known = inputs | {"mask": mask, "ref": 0 * mask, "branch": branch}
        (got,) = session.run(None, {v.name: known[v.name].numpy() for v in session.get_inputs()})
        assert relative(torch.from_numpy(got), expected[branch]) < TOLERANCE, name


def test_the_loop_carries_no_weights_of_conditioning(family: str, adapter: Adapter) -> None:
    """Each weight is in one of the two parts, and no input is left that only conditioning reads."""
    graphs = [
        onnx.load(bundle(family) / "transformer" / f"{name}.onnx", load_external_data=False).graph
        for name in ("forked", "conditioning")
    ]
    loop, conditioning = ({tensor.name for tensor in graph.initializer} for graph in graphs)
    parameters = {f"transformer.{n}" for n, p in adapter.transformer.named_parameters()}
    modules = dict(adapter.transformer.named_modules())
    ends = [m.module for m in adapter.modulations()] + list(adapter.projection())
    hoisted = {
        f"transformer.{name}.{parameter}"
        for name, module in modules.items()
        if any(module is end for end in ends)
        for parameter, _ in module.named_parameters()
    }
    assert hoisted
    assert not any(name.startswith(tuple(hoisted)) for name in loop)
    words = ("time_text_embed", "timestep_embedder", "class_embedder", "context_embedder")
    assert not [n for n in loop if any(w in n for w in words) and not any(i in n for i in IMAGE)]
    # A transposed weight's name begins with that of the parameter.
    both = {
        name
        for name in parameters
        if all(any(held.startswith(name) for held in part) for part in (loop, conditioning))
    }
    assert not both
    roles = {value.name for value in graphs[0].input}
    assert not roles & {"timestep", "pooled", "guidance", "class", "text"}


def test_the_loops_weights_are_the_smaller_part(bundle: Path) -> None:
    """On the tiny SD3: elements of the graphs' initializers, both parts against one another."""
    counts = {}
    for path in (bundle / "transformer").glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        counts[path.stem] = sum(math.prod(t.dims) for t in graph.initializer if t.external_data)
    conditioning = counts.pop("conditioning")
    for count in counts.values():
        assert count < 0.7 * (count + conditioning)

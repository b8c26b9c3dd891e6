"""Graphs exported with --observe: each block's outputs against hooks on the diffusers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
import torch

from intaglio_export.adapters import Adapter, adapter_for
from intaglio_export.bundle.verify import open_session
from intaglio_export.bundle.writing import make_graph, save_graph
from intaglio_export.graph_specs import ExportUnit
from intaglio_export.networks.conditioning import condition, loop_inputs
from intaglio_export.networks.transformer_graphs import transformer_units
from intaglio_export.support import resources
from tests.export.engines import assert_whole, build, without_engines
from tests.export.test_bundle import manifest_of, relative
from tests.families import FAMILIES

pytestmark = pytest.mark.exports
BLOCK = 1
# D_0 of two images, D_c, and D_m that continues D_c.
BRANCH = [0, 1, 2, 3, 2, 3]
Told = dict[str, torch.Tensor]


NAMES = ["sd3.5", "flux-dev", "dit", "pixart-sigma", "qwen-image", "z-image"]
# The base graph of layout dual does not depend on the family beyond its streams: joint, and one.
CASES = [*((name, "forked") for name in NAMES), ("sd3.5", "dual"), ("dit", "dual")]


@pytest.fixture(scope="module")
def adapter(request: pytest.FixtureRequest) -> Adapter:
    pipeline = FAMILIES[request.param].make()
    adapter = adapter_for(type(pipeline).__name__)
    assert adapter is not None
    return adapter(pipeline)


def gate_of(block: Any, kwargs: dict[str, Any], norms: dict[str, Any]) -> torch.Tensor:
    """As the diffusers blocks unpack it: the third of six modulations, or what AdaLN returns."""
    if hasattr(block, "scale_shift_table"):
        table = block.scale_shift_table[None] + kwargs["timestep"].reshape(1, 6, -1)
        return table.chunk(6, dim=1)[2].squeeze(1)
    if hasattr(block, "adaLN_modulation"):
        return norms["adaLN_modulation"].chunk(4, dim=-1)[1].tanh()
    if hasattr(block, "img_mod"):
        return norms["img_mod"].chunk(2, dim=-1)[0].chunk(3, dim=-1)[2]
    gate: torch.Tensor = norms["norm1" if hasattr(block, "norm1") else "norm"][1]
    return gate


@torch.no_grad()
def hooked_row(adapter: Adapter, inputs: Told, mask: torch.Tensor | None) -> Told:
    """What plain hooks see in a run of one row, `mask`'s channels zeroed after BLOCK."""
    seen: Told = {}
    handles = []
    tokens = None  # all of them
    if adapter.family == "z-image":
        tokens = inputs["latent"][0, 0].numel() // 4
    for k, block in enumerate(adapter.blocks()):
        norms: dict[str, Any] = {}
        for name in ("norm1", "norm", "img_mod", "adaLN_modulation"):
            if module := getattr(block, name, None):
                handles.append(
                    module.register_forward_hook(
                        lambda m, a, output, norms=norms, name=name: norms.update({name: output})
                    )
                )

        def hook(
            module: Any, args: Any, kwargs: Any, output: Any, k: int = k, norms: Any = norms
        ) -> Any:
            whole = output[-1] if isinstance(output, tuple) else output
            z = whole[:, :tokens]
            seen[f"hidden_states_{k}"] = z
            seen[f"gate_{k}"] = gate_of(module, kwargs, norms)
            if mask is None or k != BLOCK:
                return output
            z = torch.cat([z * (1 - mask), whole[:, z.shape[1] :]], dim=1)
            return (*output[:-1], z) if isinstance(output, tuple) else z

        handles.append(block.register_forward_hook(hook, with_kwargs=True))
    try:
        return seen | {"prediction": adapter.predict(inputs)}
    finally:
        for handle in handles:
            handle.remove()


def session(unit: ExportUnit, path: Path) -> Any:
    save_graph(make_graph(unit), path)
    return open_session(path)


def random_inputs(adapter: Adapter, unit: ExportUnit, rows: int) -> Told:
    """Of the adapter's own inputs, rows that have nothing in common."""
    generator = torch.Generator().manual_seed(3)
    sizes = unit.sizes | {"base_rows": rows}
    inputs = {
        spec.role: ExportUnit.random_input(spec, sizes, generator) for spec in adapter.inputs()
    }
    inputs["timestep"] = 1000 * torch.rand(rows, generator=generator)
    if "class" in inputs:
        inputs["class"] = torch.arange(rows)
    if "text_mask" in inputs:
        inputs["text_mask"] = (inputs["text_mask"] > -1).float()
        inputs["text_mask"][:, 0] = 1
    if "position" in inputs:
        height, width = 6, 8
        places = torch.arange(height * width)
        inputs["position"] = torch.stack([0 * places, places // width, places % width], 1).float()
    return inputs


def row(inputs: Told, index: int) -> Told:
    return {k: x if k == "position" else x[index : index + 1] for k, x in inputs.items()}


@pytest.mark.parametrize(("adapter", "layout"), CASES, indirect=["adapter"])
def test_outputs_equal_what_hooks_see(adapter: Adapter, layout: str, tmp_path: Path) -> None:
    units = transformer_units(adapter, layout, BLOCK, observe=True)
    unit = units["forked" if layout == "forked" else "base"]
    inputs = random_inputs(adapter, unit, 4)
    mask = torch.zeros(adapter.channels)
    mask[[7, 3]] = 1
    feeds = dict(
        zip([spec.role for spec in loop_inputs(adapter)], condition(adapter, inputs), strict=True)
    )
    branch = BRANCH if layout == "forked" else BRANCH[:4]
    if layout == "forked":
        tokens = dict(zip(("rows", "tokens"), unit.spec.inputs[-1].axes, strict=True))["tokens"]
        count = unit.sizes[tokens] if isinstance(tokens, str) else tokens
        keep = torch.ones(6, count)
        keep[4:] = 0
        feeds |= {
            "mask": mask, "ref": torch.zeros_like(mask), "branch": torch.tensor(branch),
            "keep": keep, "source": torch.zeros(keep.shape, dtype=torch.int64),
        }  # fmt: skip
    names = [spec.name for spec in unit.spec.outputs]
    got = session(unit, tmp_path / "graph.onnx").run(
        names, {k: x.numpy() for k, x in feeds.items()}
    )
    expected = [
        hooked_row(adapter, row(inputs, source), mask if place >= 4 else None)
        for place, source in enumerate(branch)
    ]
    blocks = len(adapter.blocks())
    assert set(names) == {"prediction"} | {
        f"{role}_{k}" for role in ("hidden_states", "gate") for k in range(blocks)
    }
    for name, tensor in zip(names, map(torch.from_numpy, got), strict=True):
        before_fork = name != "prediction" and int(name.rpartition("_")[2]) <= BLOCK
        rows = expected[:4] if before_fork else expected
        assert relative(tensor, torch.cat([told[name] for told in rows])) < 1e-4, name
    # Behind the fork, D_m is no longer the D_c that it continues.
    if layout == "forked":
        last = torch.from_numpy(got[names.index(f"hidden_states_{blocks - 1}")])
        assert relative(last[4:], last[2:4]) > 1e-2


@pytest.mark.parametrize("adapter", NAMES, indirect=True)
def test_the_degraded_graph_has_no_more_outputs(adapter: Adapter) -> None:
    (output,) = transformer_units(adapter, "dual", BLOCK, observe=True)["degraded"].spec.outputs
    assert output.role == "prediction"


def test_an_ordinary_bundle_has_the_prediction_only(bundle: Path) -> None:
    for name, graph in manifest_of(bundle)["transformer"]["graphs"].items():
        if name == "conditioning":
            continue
        assert [output["role"] for output in graph["outputs"]] == ["prediction"]
        model = onnx.load(bundle / graph["path"], load_external_data=False)
        assert [output.name for output in model.graph.output] == ["prediction"]


@pytest.mark.parametrize("role", ["hidden_states", "gate_01", "gate_-1", "after_0", "xgate_0"])
def test_the_schema_knows_no_other_role(forked_bundle: Path, role: str) -> None:
    manifest = manifest_of(forked_bundle)
    output = manifest["transformer"]["graphs"]["forked"]["outputs"][0]
    output["role"] = "gate_10"
    jsonschema.validate(manifest, resources.bundle_schema())
    output["role"] = role
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, resources.bundle_schema())


def test_its_engines_have_all_outputs(observed_bundle: Path, tmp_path: Path) -> None:
    bundle = without_engines(observed_bundle, tmp_path / "bundle")
    work, _ = build(bundle, arch="sm89")
    assert_whole(bundle, work.folder)

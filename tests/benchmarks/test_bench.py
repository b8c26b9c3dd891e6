"""The short form: on tiny models every runtime draws the same, and counts are torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import intaglio
from benchmarks.bench.counts import count_graph, count_step
from benchmarks.bench.inexact import PROMPT, compare_encoders
from benchmarks.bench.measuring import DisagreementError, check_same, interleave
from benchmarks.bench.models import Model
from benchmarks.bench.openvino_device import LIBRARIES, openvino_device
from benchmarks.bench.page import _encoders
from benchmarks.bench.plain import PlainTransformer, draw_latents, draw_text, fixed_inputs
from benchmarks.bench.runtimes import COMPILED, EAGER, FORKED, OURS, PEERS, open_runtimes
from benchmarks.bench.sections import Effort
from benchmarks.bench.workload import MODES, Workload
from tests import bundles
from tests.families import FAMILIES
from tests.integration.conftest import absent

pytestmark = pytest.mark.exports
BLOCK, SIDE, TEXT = 1, 6, 16
QUICK = tuple(name for name in (*OURS, *PEERS) if name != COMPILED)  # that takes a compiler a while
NAMES = ("sd3", "flux-dedistilled")


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    make: Callable[[], Any] = FAMILIES[request.param].make
    work = tmp_path_factory.mktemp("bench")
    return Model(request.param, work, make, tokens=SIDE, text_tokens=TEXT)


def test_all_runtimes_draw_the_same(model: Model) -> None:
    base = Workload(model.adapter, SIDE, TEXT, images=2, steps=2)
    with open_runtimes(model, BLOCK, 1, QUICK) as (runtimes, missing):
        assert not missing
        for mode in MODES:
            workload = base.with_(mode=mode)
            samples = interleave({name: (run, workload) for name, run in runtimes.items()}, 1)
            assert max(check_same(samples, EAGER).values()) < 1e-4
        other = interleave({"cfg": (runtimes[EAGER], base.with_(mode="cfg"))}, 1)
        with pytest.raises(DisagreementError, match="cfg differs from cfg\\+dg"):
            check_same({"cfg+dg": samples[EAGER]} | other, "cfg+dg")


def test_openvino_draws_the_same(model: Model) -> None:
    """Intaglio's device and OpenVINO's own runtime, in each type, against the CPU device."""
    if not LIBRARIES.exists():
        absent("needs onnxruntime-openvino: make build/deps/onnxruntime-openvino/ready")
    rows = openvino_device(model, Effort(threads=1, rounds=1))
    errors = {row["name"]: row["relative_l2"] for row in rows}
    assert len(errors) == 5
    for name, error in errors.items():
        assert error < (0.15 if "bfloat16" in name else 1e-4), name


def torch_flops(model: Model) -> tuple[int, int, int]:
    """FLOPs of one row by torch's own counter.

    Of a step's blocks, of those that stand after the fork, and of what no latent changes: the
    embeddings of time and prompt, and the modulations.
    """
    adapter = model.adapter
    inputs = {
        "latent": draw_latents(adapter, 1, SIDE),
        "timestep": torch.tensor([500.0]),
        **draw_text(adapter, 1, TEXT),
        **fixed_inputs(adapter, SIDE),
    }
    module = PlainTransformer(adapter, BLOCK, 0)
    given = [inputs[spec.role] for spec in adapter.inputs()]
    # Fused attention on the processor is not counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*given, torch.ones(1))
    module.close()
    modules = dict(adapter.transformer.named_modules())
    late = [*adapter.blocks()[BLOCK + 1 :], modules["norm_out"], modules["proj_out"]]
    late_names = [n for n, m in modules.items() if any(m is x for x in late)]
    fixed = ["time_text_embed", "context_embedder", *(n for n in modules if _is_modulation(n))]
    counted = counter.get_flop_counts()
    top = f"{type(module).__name__}.transformer"

    def total(names: Iterable[str]) -> int:
        return sum(sum(counted[f"{top}.{name}"].values()) for name in names)

    late_fixed = [n for n in fixed if n.startswith(tuple(f"{name}." for name in late_names))]
    ahead = total(fixed)
    return counter.get_total_flops() - ahead, total(late_names) - total(late_fixed), ahead


def _is_modulation(name: str) -> bool:
    return name.endswith(".linear") and "norm" in name


def test_flops_are_what_the_arithmetic_says(model: Model) -> None:
    one, after, ahead = torch_flops(model)
    sizes = {"images": 2, "side": SIDE, "text_tokens": TEXT}
    forked, dual = model.bundle("forked", BLOCK), model.bundle("dual", BLOCK)
    for cfg in (False, True):
        base = 2 * (2 if cfg else 1)
        for dg in (False, True):
            rows = 2 if dg else 0
            count = count_step(forked, cfg=cfg, dg=dg, **sizes)
            assert count.flops == pytest.approx(base * one + rows * after, rel=1e-3)
            count = count_step(dual, cfg=cfg, dg=dg, **sizes)
            assert count.flops == pytest.approx((base + rows) * one, rel=1e-3)
    once = {"conditions": 1, "prompts": 1, "text_length": TEXT}
    count = count_graph(forked / "transformer/conditioning.onnx", once)
    assert count.flops == pytest.approx(ahead, rel=1e-3)


def test_what_the_loop_needs_is_less(model: Model) -> None:
    count = count_step(
        model.bundle("forked", BLOCK), images=1, cfg=True, dg=True, side=SIDE, text_tokens=TEXT
    )
    assert 0.8 * count.flops < count.moving_flops < count.flops
    transformer = model.adapter.transformer  # its buffers hold SD3's table of positions
    stored = sum(t.nbytes for t in (*transformer.parameters(), *transformer.buffers()))
    resident, needed = sum(count.weights.values()), sum(count.moving_weights.values())
    assert 0 < needed < resident <= 1.01 * stored
    # Attention's three inputs, of three rows.
    assert count.activations > 3 * 3 * 4 * (SIDE**2 + TEXT) * model.adapter.channels


def test_the_count_of_products(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shaped = [
        helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["rows", 3, 8, 8]),
        helper.make_tensor_value_info("early", TensorProto.FLOAT, ["rows", 5]),
    ]
    weights = {"kernel": (7, 3, 2, 2), "matrix": (5, 11)}
    nodes = [
        helper.make_node("Conv", ["latent", "kernel"], ["cells"], strides=[2, 2]),
        helper.make_node("Gemm", ["early", "matrix"], ["known"]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("cells", "known")
    ]
    tensors = [numpy_helper.from_array(torch.ones(s).numpy(), n) for n, s in weights.items()]
    graph = helper.make_graph(nodes, "two", shaped, outputs, tensors)
    onnx.save(helper.make_model(graph), tmp_path / "two.onnx")
    count = count_graph(tmp_path / "two.onnx", {"rows": 2})
    convolution = 2 * (2 * 7 * 4 * 4) * (3 * 2 * 2)
    assert count.moving_flops == convolution
    assert count.flops == convolution + 2 * 2 * 5 * 11


def test_rows_of_quantised_encoders() -> None:
    """Smaller weights have an error, which is that of the embeddings as the command writes them."""
    paths = {
        FORKED: bundles.bundle("z-image"),
        "int8": bundles.bundle("z-image", quantize_encoders="int8"),
    }
    exact, rounded = compare_encoders(paths, Effort(threads=1, rounds=3))
    assert (exact["name"], exact["relative_l2"]) == (FORKED, 0)
    assert exact["weights_bytes"] > 1.5 * rounded["weights_bytes"]
    embeds = [
        np.asarray(intaglio.Pipeline.open(path, device="cpu").embed(PROMPT).prompt_embeds)
        for path in paths.values()
    ]
    error = np.linalg.norm(embeds[1] - embeds[0]) / np.linalg.norm(embeds[0])
    assert rounded["relative_l2"] == pytest.approx(error)
    assert 0 < error < 0.1
    assert f"| int8 | {rounded['ratio_to_forked']['median']:.2f} [" in _encoders([exact, rounded])

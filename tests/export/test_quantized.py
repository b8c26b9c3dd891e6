"""Integer weights: against torch's, against diffusers' runs, and with a massive channel."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import intaglio
from intaglio_export.bundle.verify import QUANTIZED_TOLERANCE, open_session
from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ANCHORED, QUANTIZE, ExportRequest
from intaglio_export.passes.quantize_weights import BLOCK, WEIGHT_BITS, quantize_weights
from tests import bundles
from tests.families import FAMILIES
from tests.families.sd3 import PLANTED
from tests.integration.conftest import ENTRY_POINT

# FP4 has no kernels on the CPU (test_quantize_dequantize.py).
RUN = [scheme for scheme in QUANTIZE if scheme != "fp4"]


@pytest.fixture(scope="module", params=RUN)
def quantized(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """The tiny SD3, whose channel PLANTED is massive, quantised by a scheme."""
    return request.param, bundles.bundle(quantize=request.param)


def manifest(bundle: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((bundle / "bundle.json").read_text("utf-8"))
    return data


def test_the_manifest_says_scheme_channels_and_error(quantized: tuple[str, Path]) -> None:
    scheme, bundle = quantized
    said = manifest(bundle)["transformer"]["quantized"]
    assert (said["scheme"], said["exact_channels"]) == (scheme, [PLANTED])
    assert 1e-5 < said["error"] < QUANTIZED_TOLERANCE[scheme]
    assert said["difference_errors"].keys() == {"unconditional", "degraded"}
    assert all(1e-5 < error < 1 for error in said["difference_errors"].values())
    shown = subprocess.run(
        [ENTRY_POINT, "inspect", bundle, "--json"], check=True, capture_output=True, text=True
    )
    found = json.loads(shown.stdout)["quantized"]
    assert found["scheme"] == scheme
    assert found["error_forward"] == said["error"]
    assert found["error_degraded"] == said["difference_errors"]["degraded"]
    assert ("differences from D_c" in found.get("activations", "")) == (scheme in ANCHORED)


def test_only_products_are_quantized(quantized: tuple[str, Path]) -> None:
    """Every Gemm is AdaLN's or a conditioning vector's, ahead of the loop."""
    _, bundle = quantized
    ahead, graph = (
        ir.load(bundle / "transformer" / f"{name}.onnx").graph
        for name in ("conditioning", "forked")
    )
    gemms = [node.inputs[1] for node in ahead if node.op_type == "Gemm"]
    assert gemms
    assert all(weight is not None and weight.dtype == ir.DataType.FLOAT for weight in gemms)
    exact = [v for n, v in graph.initializers.items() if n.endswith("_massive")]
    assert exact
    assert all(v.dtype == ir.DataType.FLOAT for v in exact)


def model(weight: np.ndarray, channels: int, scheme: str) -> ir.Model:
    """A product of a LayerNorm, as a block's first."""
    k, n = weight.shape
    rows = ", int64[r] anchor, int64[f] branch" if scheme == "int8-dynamic" else ""
    text = f"""<ir_version: 10, opset_import: ["": 23]>
        g (float[r, t, {k}] x{rows}) => (float[r, t, {n}] y)
        <float[r, t, {k}] h>
        {{ h = LayerNormalization<axis = -1>(x, one)
           y = MatMul(h, w) }}"""
    made = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    for name, values in {"w": weight, "one": np.ones(channels, np.float32)}.items():
        value = next(
            v for node in made.graph for v in node.inputs if v is not None and v.name == name
        )
        value.const_value = ir.tensor(values, name=name)
        value.shape, value.dtype = ir.Shape(values.shape), ir.DataType.FLOAT
        made.graph.register_initializer(value)
    return made


def run(made: ir.Model, x: np.ndarray, folder: Path) -> np.ndarray:
    ir.save(made, folder / "g.onnx")
    session = open_session(folder / "g.onnx")
    feeds = {"x": x, "anchor": np.zeros(len(x), np.int64), "branch": np.zeros(1, np.int64)}
    names = [tensor.name for tensor in session.get_inputs()]
    result: np.ndarray = session.run(None, {name: feeds[name] for name in names})[0]
    return result


@pytest.mark.parametrize("scheme", WEIGHT_BITS)
def test_weights_are_within_half_a_step(scheme: str) -> None:
    """Within a whole one at the end of n bits: they hold one level more below zero than above."""
    weight = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    made = model(weight, 64, scheme)
    quantize_weights(made, scheme)
    held = {n: v.const_value.numpy() for n, v in made.graph.initializers.items() if v.const_value}
    if scheme == "int8-dynamic":
        integers, step, last = held["w_int8"].astype(np.float32), held["w_scale"], 128
        largest = np.abs(weight).max(0) / 127
    else:
        last = 127 if scheme == "int8" else 7
        packed = held[f"w_int{8 if scheme == 'int8' else 4}"].reshape(48, -1)
        if scheme == "int4":
            packed = np.stack([packed & 15, packed >> 4], -1).reshape(48, -1)
        integers = packed.T.astype(np.float32) - (last + 1)
        step = held["w_scale"].reshape(48, -1).repeat(BLOCK, 1).T
        largest = np.abs(weight.reshape(-1, BLOCK, 48)).max(1).repeat(BLOCK, 0) / (last + 1)
    np.testing.assert_allclose(np.abs(step), largest, rtol=1e-5)
    allowed = np.where(integers == last, 1.0, 0.5) * np.abs(step)
    assert (np.abs(integers * step - weight) <= allowed * 1.001).all()


@pytest.mark.parametrize("scheme", WEIGHT_BITS)
def test_a_massive_channel_in_float32_saves_the_others(scheme: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    weight = draw.standard_normal((64, 48)).astype(np.float32)
    x = draw.standard_normal((1, 20, 64)).astype(np.float32)
    x[..., PLANTED] += 400.0
    exact = run(model(weight, 64, scheme), x, tmp_path)
    errors = {}
    for name, massive in (("with", [PLANTED]), ("without", [])):
        made = model(weight, 64, scheme)
        quantize_weights(made, scheme, massive)
        errors[name] = np.linalg.norm(run(made, x, tmp_path) - exact)
    assert errors["with"] < 0.5 * errors["without"]


@pytest.mark.exports
def test_a_stream_that_is_read_without_a_norm(tmp_path: Path) -> None:
    """As by the queries of PixArt's cross-attention."""
    output = tmp_path / "bundle"
    folder = tmp_path / "pixart"
    FAMILIES["pixart-sigma"].make().save_pretrained(folder)
    request = ExportRequest(
        folder, output, quantize="int8-dynamic", channels=str(PLANTED), block=0,
        text_encoders="none",
    )  # fmt: skip
    export_bundle(request)
    assert manifest(output)["transformer"]["quantized"]["exact_channels"] == [PLANTED]
    names = ir.load(output / "transformer" / "forked.onnx").graph.initializers
    blocks = manifest(output)["transformer"]["blocks"]
    # Of a block: q, k and v of self-attention, q of cross-attention, the first of the two layers.
    # And the output's projection.
    assert sum(name.endswith("_massive") for name in names) == 5 * blocks + 1


def test_whole_runs_are_near_the_float32_bundle_s(
    quantized: tuple[str, Path], forked_bundle: Path
) -> None:
    """Which is diffusers' (tests/parity). Errors of steps add up, to less than their sum."""
    latents = []
    for bundle in (forked_bundle, quantized[1]):
        pipeline = intaglio.Pipeline.open(bundle, device="cpu", threads=1)
        latents.append(np.asarray(pipeline.generate("a dark boot", seeds=3).latents))
    error = np.linalg.norm(latents[1] - latents[0]) / np.linalg.norm(latents[0])
    recorded = manifest(quantized[1])["transformer"]["quantized"]["error"]
    assert 0 < error < 4 * recorded


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"quantize": "int3"}, "--quantize int3: expected int8 or int4 or int8-dynamic or fp8"),
        ({"quantize": "int8", "dtype": "float16"}, "leave out --quantize or --dtype float16"),
        ({"quantize": "int8-dynamic", "layout": "dual"}, "--layout dual does not run beside it"),
    ],
)
def test_bad_input(sd3_folder: Path, tmp_path: Path, given: dict[str, str], says: str) -> None:
    request = ExportRequest(sd3_folder, tmp_path / "out", **given)
    with pytest.raises(ExportError, match=says) as caught:
        export_bundle(request)
    assert caught.value.exit_code == ExitCode.USAGE
    assert not (tmp_path / "out").exists()


JOBS: list[dict[str, Any]] = [
    {"prompt": "a dark boot", "seeds": [1, 2]},
    {"prompt": "a bag", "seeds": 3, "cfg_scale": 1.0, "dg_scale": 0.0},
    {"prompt": "a coat", "seeds": 4, "dg_scale": 0.0, "steps": 3},
    {"prompt": "a bag", "seeds": 5, "cfg_scale": 1.0, "dg_scale": 2.0, "ma_keep": (0.5, 0.0)},
    {"prompt": "a coat", "negative_prompt": "a bag", "seeds": 6, "steps": 6, "reuse_interval": 2},
    {"prompt": "a boot", "seeds": 7, "steps": 6, "skip_interval": 2, "skip_tolerance": 100.0},
    {"prompt": "a boot", "seeds": 8, "ma_tokens": np.eye(16, dtype=np.uint8) * 255},
]


def test_requests_together_draw_what_each_draws_alone(quantized: tuple[str, Path]) -> None:
    """Bit for bit: no row changes another, in any mode."""
    _, bundle = quantized
    pipeline = intaglio.Pipeline.open(bundle, device="cpu", threads=1)
    batch = intaglio.Batch(pipeline)
    places = {batch.add(**job): job for job in JOBS}
    drawn = 0
    while len(batch):
        for step in batch.step():
            if step.done:
                alone = pipeline.generate(**places[step.id])
                np.testing.assert_array_equal(step.finish().latents, alone.latents)
                drawn += 1
    assert drawn == len(JOBS)


@pytest.fixture(scope="module")
def dynamic() -> Path:
    return bundles.bundle(quantize="int8-dynamic")


def test_another_device_than_the_cpu_has_no_kernels(dynamic: Path) -> None:
    with pytest.raises(intaglio.UnavailableError, match="no kernels for the int8-dynamic weights"):
        intaglio.Pipeline.open(dynamic, device="openvino")
    assert intaglio.Pipeline.open(dynamic).backend.startswith("ONNX Runtime")


def test_differences_of_branches_are_nearer_than_those_of_rows_by_themselves(
    dynamic: Path, forked_bundle: Path
) -> None:
    """In plain ONNX Runtime, which runs the functions, on rows D_0, D_c and D_m of one image."""
    random = np.random.default_rng(0)
    exact, coded = (open_session(b / "transformer/forked.onnx") for b in (forked_bundle, dynamic))
    sizes = {"base_rows": 2, "rows": 3, "tokens": 24, "text_length": 7}
    sizes |= {"latent_height": 12, "latent_width": 8}
    feeds = {
        tensor.name: random.standard_normal([sizes.get(a, a) for a in tensor.shape])
        for tensor in coded.get_inputs()
    }
    feeds["latent"][0], feeds["modulation"][0] = feeds["latent"][1], feeds["modulation"][1]
    feeds = {name: value.astype(np.float32) for name, value in feeds.items()}
    feeds["mask"] = (np.arange(len(feeds["mask"])) == PLANTED).astype(np.float32)
    feeds["keep"] = np.array([1, 1, 0], np.float32)[:, None] + 0 * feeds["keep"]
    feeds["source"] = np.zeros(feeds["keep"].shape, np.int64)
    feeds["branch"], anchors = np.array([0, 1, 1]), {"anchor": np.array([1, 1])}
    itself = {"anchor": np.array([0, 1])}
    names = [tensor.name for tensor in exact.get_inputs()]
    want = exact.run(None, {name: feeds[name] for name in names})[0]
    got, apart = (coded.run(None, feeds | given)[0] for given in (anchors, itself))
    np.testing.assert_array_equal(got[1:], apart[1:])  # D_m follows D_c either way
    for one, much in ((got, 0.1), (apart, 1.0)):
        error = np.linalg.norm((one[1] - one[2]) - (want[1] - want[2]))
        assert error < much * np.linalg.norm(want[1] - want[2])
    errors = [np.linalg.norm((rows[1] - rows[0]) - (want[1] - want[0])) for rows in (got, apart)]
    assert errors[0] < errors[1]

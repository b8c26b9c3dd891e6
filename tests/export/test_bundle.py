"""A bundle's graphs against diffusers itself, and its manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch.nn.functional import pad

from intaglio_export.bundle.verify import open_session
from intaglio_export.support import resources
from tests.families.parts import MAX_LENGTH
from tests.families.sd3 import PLANTED

BLOCK = 1


def manifest_of(bundle: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((bundle / "bundle.json").read_text("utf-8"))
    return manifest


def run(path: Path, **feeds: torch.Tensor) -> list[torch.Tensor]:
    outputs = open_session(path).run(None, {k: v.numpy() for k, v in feeds.items()})
    return [torch.from_numpy(output) for output in outputs]


def conditioned(bundle: Path, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the graphs of the loop take for inputs of the transformer: conditioning has run."""
    session = open_session(bundle / "transformer" / "conditioning.onnx")
    feeds = {value.name: inputs.pop(value.name).numpy() for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    made = zip(names, map(torch.from_numpy, session.run(names, feeds)), strict=True)
    return inputs | dict(made)


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).norm() / expected.norm())


def base_inputs(rows: int, height: int, width: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return {
        "latent": torch.randn(rows, 4, height, width, generator=generator),
        "text": torch.randn(rows, length, 48, generator=generator),
        "pooled": torch.randn(rows, 40, generator=generator),
        "timestep": torch.rand(rows, generator=generator) * 1000,
    }


@torch.no_grad()
def diffusers_row(
    pipeline: StableDiffusion3Pipeline,
    inputs: dict[str, torch.Tensor],
    row: int,
    mask: torch.Tensor,
    ref: torch.Tensor,
    keep: torch.Tensor,
) -> torch.Tensor:
    """One row of the diffusers model alone, its stream changed after BLOCK by a plain hook."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        text, z = output
        a = mask * (1 - keep[:, None])
        return text, z + a * (ref - z)

    handle = pipeline.transformer.transformer_blocks[BLOCK].register_forward_hook(hook)
    try:
        prediction: torch.Tensor = pipeline.transformer(
            hidden_states=inputs["latent"][row : row + 1],
            encoder_hidden_states=inputs["text"][row : row + 1],
            pooled_projections=inputs["pooled"][row : row + 1],
            timestep=inputs["timestep"][row : row + 1],
            return_dict=False,
        )[0]
    finally:
        handle.remove()
    return prediction


@pytest.mark.parametrize(
    ("base_rows", "branch", "height", "width", "length"),
    [
        (1, [0], 16, 16, 32),
        (1, [0, 0], 10, 14, 5),
        (2, [0, 1, 1], 16, 16, 32),
        (6, [0, 1, 2, 3, 4, 5, 3, 4, 5], 6, 22, 7),
    ],
)
def test_branches_equal_the_hooked_diffusers_model(
    forked_bundle: Path,
    dual_bundle: Path,
    sd3_pipeline: StableDiffusion3Pipeline,
    base_rows: int,
    branch: list[int],
    height: int,
    width: int,
    length: int,
) -> None:
    inputs = base_inputs(base_rows, height, width, length)
    generator = torch.Generator().manual_seed(9)
    mask = torch.zeros(64)
    mask[[PLANTED, 3, 40]] = 1
    ref = torch.randn(64, generator=generator)
    tokens = height * width // 4
    levels = torch.tensor([0.0, 0.3, 1.0])
    keep = levels[torch.randint(3, (len(branch), tokens), generator=generator)]
    keep[:base_rows] = 1.0
    rows = torch.tensor(branch)
    (forked,) = run(
        forked_bundle / "transformer" / "forked.onnx",
        **conditioned(forked_bundle, **inputs), mask=mask, ref=ref, branch=rows, keep=keep,
        source=torch.zeros(keep.shape, dtype=torch.int64),
    )  # fmt: skip
    expected = torch.cat(
        [
            diffusers_row(sd3_pipeline, inputs, source, mask, ref, keep[row])
            for row, source in enumerate(branch)
        ]
    )
    assert relative(forked, expected) < 1e-5
    made = conditioned(dual_bundle, **inputs)
    (base,) = run(dual_bundle / "transformer" / "base.onnx", **made)
    assert relative(base, expected[:base_rows]) < 1e-5
    (degraded,) = run(
        dual_bundle / "transformer" / "degraded.onnx",
        **{role: tensor[rows] for role, tensor in made.items()}, mask=mask, ref=ref, keep=keep,
    )  # fmt: skip
    assert relative(degraded, forked) < 1e-5


@torch.no_grad()
def test_encoded_prompts_equal_the_pipelines(
    forked_bundle: Path, sd3_pipeline: StableDiffusion3Pipeline
) -> None:
    prompts = ["the dark boot", "", "a very long prompt " * 9]
    manifest = manifest_of(forked_bundle)
    outputs = {}
    for name, encoder in manifest["prompt"]["encoders"].items():
        tokenizer = getattr(sd3_pipeline, name.replace("text_encoder", "tokenizer"))
        ids = tokenizer(
            prompts, padding="max_length", max_length=encoder["max_length"], truncation=True,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        outputs[name] = run(forked_bundle / encoder["graph"]["path"], token_ids=ids)
    layout = manifest["prompt"]
    segments = []
    for segment in layout["text"]:
        words = [outputs[name][0] for name in segment["encoders"]]
        joined = torch.cat(words, -1) if words else torch.zeros(len(prompts), segment["length"], 1)
        segments.append(pad(joined, (0, layout["text_width"] - joined.shape[-1])))
    expected_text, _, expected_pooled, _ = sd3_pipeline.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=MAX_LENGTH
    )
    assert relative(torch.cat(segments, 1), expected_text) < 1e-5
    pooled = torch.cat([outputs[name][1] for name in layout["pooled"]], -1)
    assert relative(pooled, expected_pooled) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("images", "height", "width"), [(1, 16, 16), (3, 10, 6)])
def test_the_vae_equals_diffusers(
    forked_bundle: Path,
    sd3_pipeline: StableDiffusion3Pipeline,
    images: int,
    height: int,
    width: int,
) -> None:
    latent = torch.randn(images, 4, height, width)
    (image,) = run(forked_bundle / "vae_decoder" / "model.onnx", latent=latent)
    assert relative(image, sd3_pipeline.vae.decode(latent).sample) < 1e-5
    (mean,) = run(forked_bundle / "vae_encoder" / "model.onnx", image=image)
    assert relative(mean, sd3_pipeline.vae.encode(image).latent_dist.mean) < 1e-5


def test_graphs_are_valid_and_say_nothing_of_where_they_were_made(bundle: Path) -> None:
    for path in bundle.rglob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)
        data = path.read_bytes()
        for word in (b"site-packages", b"stack_trace", bytes(Path.cwd())):
            assert word not in data, f"{path.name} holds {word!r}"


def test_the_op_stands_once_with_its_function(bundle: Path) -> None:
    name = "forked" if "forked" in bundle.name else "degraded"
    model = onnx.load(bundle / "transformer" / f"{name}.onnx", load_external_data=False)
    assert [n.op_type for n in model.graph.node if n.domain == "ai.intaglio"] == ["MASuppress"]
    assert [(f.domain, f.name) for f in model.functions] == [("ai.intaglio", "MASuppress")]
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 23), ("ai.intaglio", 2)}


def test_dual_stores_its_weights_once(forked_bundle: Path, dual_bundle: Path) -> None:
    sizes = [
        (b / "transformer" / "weights.data").stat().st_size for b in (forked_bundle, dual_bundle)
    ]
    assert sizes[1] <= sizes[0] * 1.01


def test_the_manifest_fits_its_schema_and_files(bundle: Path, sd3_folder: Path) -> None:
    manifest = manifest_of(bundle)
    jsonschema.validate(manifest, resources.bundle_schema())
    present = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == present - {"bundle.json"}
    for path, entry in manifest["files"].items():
        data = (bundle / path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert manifest["source"] == sd3_folder.name
    assert manifest["massive_activations"]["channels"] == [PLANTED]
    assert manifest["massive_activations"]["massive"] is True
    assert str(sd3_folder.parent) not in json.dumps(manifest)


def test_the_manifest_lists_the_graphs_own_inputs(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    for graph in manifest["transformer"]["graphs"].values():
        model = onnx.load(bundle / graph["path"], load_external_data=False)
        for listed, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
            assert [t["name"] for t in graph[listed]] == [v.name for v in values]
            for tensor, value in zip(graph[listed], values, strict=True):
                dims = value.type.tensor_type.shape.dim
                assert tensor["axes"] == [d.dim_param or d.dim_value for d in dims]


def test_scheduler_latent_and_defaults_are_the_pipelines(
    forked_bundle: Path, sd3_pipeline: StableDiffusion3Pipeline
) -> None:
    manifest = manifest_of(forked_bundle)
    scheduler = dict(manifest["scheduler"])
    assert scheduler.pop("type") == "FlowMatchEulerDiscreteScheduler"
    config = {k: v for k, v in sd3_pipeline.scheduler.config.items() if not k.startswith("_")}
    assert scheduler == config
    latent, vae = manifest["latent"], sd3_pipeline.vae.config
    assert (latent["scaling_factor"], latent["shift_factor"]) == (
        vae.scaling_factor,
        vae.shift_factor,
    )
    assert (latent["vae_scale_factor"], latent["max_height"]) == (2, 32 * 2 * 2)
    assert manifest["defaults"]["ma_keep"] == [0.0, 0.0]
    assert manifest["defaults"]["dg_scale"] == 0.5

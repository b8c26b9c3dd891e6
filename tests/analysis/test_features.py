"""Every recipe of `features`, compared with torch's own hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from intaglio.analysis import features
from intaglio.analysis.block_features import massive_channels
from tests.families import FAMILIES
from tests.families.sd3 import PLANTED, make_pipeline
from tests.parity.diffusers_runs import native_run

BLOCK = 2


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return make_pipeline()


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(size=(2, 32, 48, 3)).astype(np.float32)


def hooked(pipeline: Any, images: NDArray[np.float32], module: Any, **how: Any) -> torch.Tensor:
    """Return the output of `module` while features are computed."""
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda m, args, out: seen.append(out))
    features(pipeline, images, **{"blocks": [BLOCK]} | how)
    handle.remove()
    (output,) = seen
    return output


def test_raw_features_are_the_stream(pipeline: Any, images: NDArray[np.float32]) -> None:
    found = features(pipeline, images, blocks=[BLOCK], recipe="raw")
    block = pipeline.transformer.transformer_blocks[BLOCK]
    stream = hooked(pipeline, images, block, recipe="raw")[1]
    assert found.shape == (2, 8, 12, 64)
    np.testing.assert_array_equal(found.reshape(2, 96, 64), stream.numpy())


def test_what_is_massive_is_discarded_and_nothing_else(
    pipeline: Any, images: NDArray[np.float32]
) -> None:
    raw = features(pipeline, images, blocks=[BLOCK], recipe="raw")
    assert massive_channels(raw.reshape(2, 96, 64)) == [PLANTED]
    found = features(pipeline, images, blocks=[BLOCK], recipe="discarded")
    expected = raw.copy()
    expected[..., PLANTED] = 0
    np.testing.assert_array_equal(found, expected)
    chosen = features(pipeline, images, blocks=[BLOCK], recipe="discarded", channels=[1, 2])
    expected = raw.copy()
    expected[..., [1, 2]] = 0
    np.testing.assert_array_equal(chosen, expected)


def by_diffusers(pipeline: Any, images: NDArray[np.float32], gone: list[int]) -> torch.Tensor:
    """Return AdaLN's output by diffusers' module for the stream without channels `gone`."""
    transformer = pipeline.transformer
    stream = hooked(pipeline, images, transformer.transformer_blocks[BLOCK - 1], recipe="raw")[1]
    projected = hooked(pipeline, images, transformer.time_text_embed.time_proj, recipe="raw")
    stream = stream.clone()
    stream[..., gone] = 0
    with torch.no_grad():
        time = transformer.time_text_embed.timestep_embedder(projected)
        return transformer.transformer_blocks[BLOCK].norm1(stream, emb=time)[0]


def test_modulated_features_are_adalns_output_without_what_entered(
    pipeline: Any, images: NDArray[np.float32]
) -> None:
    """Massive channels go before the LayerNorm, whose scale they would decide."""
    expected = by_diffusers(pipeline, images, [PLANTED])
    assert expected[..., PLANTED].abs().max() > 0.01  # AdaLN shifts it
    found = torch.from_numpy(features(pipeline, images, blocks=[BLOCK])).flatten(1, 2)
    torch.testing.assert_close(found, expected)
    everything = features(pipeline, images, blocks=[BLOCK], channels=[])
    expected = by_diffusers(pipeline, images, [])
    torch.testing.assert_close(torch.from_numpy(everything).flatten(1, 2), expected)


def test_a_massive_channel_makes_all_raw_tokens_alike(
    pipeline: Any, images: NDArray[np.float32]
) -> None:
    def alike(recipe: str) -> float:
        tokens = torch.from_numpy(features(pipeline, images, blocks=[BLOCK], recipe=recipe))
        unit = torch.nn.functional.normalize(tokens.flatten(1, 2), dim=-1)
        return float((unit @ unit.mT).mean())

    assert alike("modulated") < alike("discarded") < alike("raw")
    assert alike("raw") > 0.8


def test_mrep_adds_the_maps_of_the_massive_channels(
    pipeline: Any, images: NDArray[np.float32]
) -> None:
    found = features(pipeline, images, blocks=[BLOCK], recipe="mrep")
    modulated = features(pipeline, images, blocks=[BLOCK])
    np.testing.assert_array_equal(found[..., :64], modulated)
    transformer = pipeline.transformer
    before = hooked(pipeline, images, transformer.transformer_blocks[BLOCK - 1], recipe="raw")[1]
    maps = torch.nn.functional.instance_norm(before[..., [PLANTED]].mT, eps=0.0).mT
    torch.testing.assert_close(
        torch.from_numpy(found[..., 64:]).flatten(1, 2), maps, rtol=1e-4, atol=1e-4
    )


def test_features_are_averaged_over_noises(pipeline: Any, images: NDArray[np.float32]) -> None:
    how: dict[str, Any] = {"blocks": [BLOCK], "channels": [PLANTED]}
    found = features(pipeline, images, **how, seed=3, noises=2)
    each = [features(pipeline, images, **how, seed=seed) for seed in (3, 5)]
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-5, atol=1e-6)


def test_normalised_blocks_are_joined(pipeline: Any, images: NDArray[np.float32]) -> None:
    found = features(pipeline, images, blocks=[1, BLOCK], recipe="normalised")
    assert found.shape == (2, 8, 12, 128)
    for half in np.split(found, 2, axis=-1):
        tokens = torch.from_numpy(half).flatten(0, 2)
        torch.testing.assert_close(tokens, torch.nn.functional.normalize(tokens, dim=1))


def test_no_noise_is_the_image_and_all_noise_is_none_of_it(
    pipeline: Any, images: NDArray[np.float32]
) -> None:
    other = images[::-1].copy()
    how: dict[str, Any] = {"blocks": [0], "recipe": "raw", "seed": 3}
    first, second = (features(pipeline, x, sigma=1.0, **how) for x in (images, other))
    np.testing.assert_allclose(first, second, atol=1e-4)
    one, two = (features(pipeline, images, sigma=0.0, blocks=[0], seed=s) for s in (3, 4))
    # The lowest sigma of a hundred steps is not quite zero.
    assert np.abs(one - two).max() < 0.5 < np.abs(first).max()


@pytest.mark.parametrize("name", ["flux2-klein", "dit", "pixart-sigma", "qwen-image"])
def test_without_a_pooled_prompt_modulated_is_what_attention_reads(name: str) -> None:
    """Where nothing is discarded, nothing but the timestep modulates the stream of the run."""
    pipeline = FAMILIES[name].make()
    block = pipeline.transformer.transformer_blocks[1]
    attention = block.attn1 if hasattr(block, "attn1") else block.attn
    seen: list[torch.Tensor] = []
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("hidden_states", *args[:1])),
        with_kwargs=True,
    )
    images = np.random.default_rng(0).uniform(size=(1, 32, 32, 3))
    features(pipeline, images, blocks=[1], recipe="raw")
    handle.remove()
    found = features(pipeline, images, blocks=[1], channels=[])
    torch.testing.assert_close(torch.from_numpy(found).flatten(1, 2), seen[0])


@pytest.mark.parametrize(
    "name", ["sd3", "flux-dev", "flux2-klein", "dit", "pixart-sigma", "qwen-image"]
)
def test_every_family_gives_what_its_blocks_do(name: str) -> None:
    """The features equal what torch's own hooks see, and the pipeline is left unchanged."""
    family = FAMILIES[name]
    pipeline = family.make()
    before = native_run(pipeline, family, 1.0)
    images = np.random.default_rng(0).uniform(size=(1, 32, 32, 3))
    block = pipeline.transformer.transformer_blocks[1]
    how: dict[str, Any] = {"blocks": [1], "recipe": "raw"}
    found = features(pipeline, images, **how)
    output = hooked(pipeline, images, block, **how)
    stream = output[-1] if isinstance(output, tuple) else output
    tokens = stream.shape[1]
    assert found.shape == (1, int(tokens**0.5), int(tokens**0.5), stream.shape[2])
    np.testing.assert_array_equal(found.reshape(stream.shape), stream.numpy())
    after = native_run(pipeline, family, 1.0)
    torch.testing.assert_close(after.latents, before.latents, rtol=0, atol=0)
    modulated = features(pipeline, images, blocks=[1])
    assert modulated.shape == found.shape
    assert np.isfinite(modulated).all()
    assert not np.array_equal(modulated, found)
    after = native_run(pipeline, family, 1.0)
    torch.testing.assert_close(after.latents, before.latents, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"recipe": "best"}, "no recipe best"),
        ({"blocks": [9]}, "pass some of 0 to 3"),
        ({"blocks": []}, "pass some of 0 to 3"),
        ({"channels": [64]}, "0 to 63"),
        ({"sigma": 2.0}, "share of noise"),
        ({"noises": 0}, "1 or more"),
    ],
)
def test_mistakes_are_named(
    pipeline: Any, images: NDArray[np.float32], how: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        features(pipeline, images, **({"blocks": [0]} | how))


def test_sizes_have_to_fit(pipeline: Any) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        features(pipeline, np.zeros((1, 30, 32, 3)), blocks=[0])
    with pytest.raises(ValueError, match="no family"):
        features(object(), np.zeros((1, 32, 32, 3)), blocks=[0])

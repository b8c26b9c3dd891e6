"""The recorder's sums, compared with NumPy on all activations at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from intaglio.analysis.channels.model_recorder import BATCH, maps, record_model
from intaglio.analysis.channels.recorder import QUANTILES, Recorder
from intaglio.torch_reference.guidance import Method
from intaglio.torch_reference.model import Model, Step
from intaglio_export.calibration.massive import RATIO
from tests.analysis.conftest import STEPS
from tests.families.sd3 import BLOCKS, PLANTED

SEEDS = range(BATCH + 3)


@pytest.fixture(scope="module")
def activations(model: Model) -> NDArray[np.float32]:
    """z [L, S, N, T, C] after each block at each step, from torch's own hooks."""
    kept: list[list[torch.Tensor]] = [[] for _ in range(BLOCKS)]
    handles = [
        block.register_forward_hook(lambda m, args, out, k=k: kept[k].append(out[1]))
        for k, block in enumerate(model.adapter.transformer.transformer_blocks)
    ]
    model.sample(Method().predictor(model), SEEDS, STEPS)
    for handle in handles:
        handle.remove()
    return torch.stack([torch.stack(steps) for steps in kept]).numpy()


def test_statistics_are_those_of_all_activations(
    model: Model, activations: NDArray[np.float32], tmp_path
) -> None:
    found = record_model(model, SEEDS, STEPS, tmp_path / "statistics.npz")
    size = np.abs(activations)
    close = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(found["after.mean"], activations.mean((2, 3)), **close)
    np.testing.assert_allclose(found["after.mean_abs"], size.mean((2, 3)), **close)
    np.testing.assert_allclose(found["after.max_abs"], size.max((2, 3)), **close)
    quantiles = np.quantile(size, QUANTILES, axis=3).mean(3)
    np.testing.assert_allclose(found["after.quantiles"], np.moveaxis(quantiles, 0, -1), **close)
    mean = size.mean(3)
    median = np.median(mean, axis=-1, keepdims=True)
    np.testing.assert_allclose(found["after.ratio"], (mean / median).mean(2), **close)
    on_tokens = (size >= RATIO * median[..., None]).mean(3)
    np.testing.assert_allclose(found["after.agreement"], on_tokens.mean(2), **close)
    token = size.mean(4)
    over = token / np.median(token, axis=-1, keepdims=True)
    np.testing.assert_allclose(found["after.tokens"], over.mean(2), **close)
    assert found.channels().massive(1) == [PLANTED]
    assert found["gate.mean_abs"].shape == (BLOCKS, STEPS, 64)


def test_a_stopped_recording_goes_on(model: Model, tmp_path) -> None:
    class StopError(Exception):
        pass

    def stop(share: float) -> None:
        raise StopError

    path = tmp_path / "statistics.npz"
    with pytest.raises(StopError):
        record_model(model, SEEDS, STEPS, path, stop)
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    handle = model.adapter.transformer.register_forward_hook(count)
    found = record_model(model, SEEDS, STEPS, path)
    handle.remove()
    assert runs == STEPS  # only the second batch
    whole = record_model(model, SEEDS, STEPS, tmp_path / "whole.npz")
    for name, values in whole.values.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-9)
    assert found.sigmas == whole.sigmas


def test_another_run_does_not_go_on_from_this_one(model: Model, tmp_path) -> None:
    path = tmp_path / "statistics.npz"
    record_model(model, range(2), STEPS, path, points=["after"])
    found = record_model(model, range(3), STEPS, path, points=["after"])
    assert found["after.count"].max() == 3


def test_memory_does_not_grow_with_what_was_seen() -> None:
    recorder = Recorder(2, 2)
    draw = np.random.default_rng(0)

    def size() -> int:
        return sum(values.nbytes for values in recorder.sums.values())

    recorder.add("after", 0, 0, draw.normal(size=(1, 16, 8)))
    before = size()
    recorder.add("after", 1, 1, draw.normal(size=(50, 16, 8)))
    assert size() == before


def test_maps_are_the_stream_at_each_token(model: Model, activations: NDArray[np.float32]) -> None:
    found, clean, sigmas = maps(model, 2, [PLANTED, 3], SEEDS[1], STEPS)
    expected = activations[2, :, 1][..., [PLANTED, 3]].transpose(0, 2, 1)
    np.testing.assert_allclose(found.reshape(STEPS, 2, -1), expected, rtol=1e-3, atol=1e-3)
    assert clean.shape[0] == STEPS == len(sigmas)
    assert sigmas == sorted(sigmas, reverse=True)


def test_the_last_clean_image_is_the_final_one(model: Model) -> None:
    """The last step of flow matching moves to the clean estimate itself."""
    last: list[torch.Tensor] = []

    def watch(step: Step, prediction: torch.Tensor) -> None:
        last.append(model.clean(step, prediction))

    final = model.sample(Method().predictor(model), [0], STEPS, watch=watch)
    torch.testing.assert_close(last[-1], final, rtol=1e-4, atol=1e-4)

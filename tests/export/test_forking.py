"""The fork after each block of both kinds that FLUX.2 has, against two runs of its transformer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from intaglio.torch_reference.hooks import skip_block
from intaglio_export.adapters.flux2 import Flux2KleinAdapter
from intaglio_export.networks.conditioning import condition
from intaglio_export.networks.forking import ForkedTransformer
from tests.export.test_conditioning import random_inputs
from tests.families import flux2

REF = 3.0


@pytest.fixture(scope="module")
def adapter() -> Flux2KleinAdapter:
    return Flux2KleinAdapter(flux2.make_base())


@contextmanager
def image_tokens_moved(adapter: Flux2KleinAdapter, block: int, text: int) -> Iterator[None]:
    """Set the planted channel of the image tokens to REF after `block`, by diffusers' layout."""

    def move(module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # double-stream blocks return the text and the image
            output[1][:, :, flux2.PLANTED] = REF
        else:  # single-stream blocks return both in one sequence
            output[:, text:, flux2.PLANTED] = REF
        return output

    handle = adapter.blocks()[block].register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("block", range(4))
def test_branches_equal_runs_of_the_transformer(adapter: Flux2KleinAdapter, block: int) -> None:
    """Rows D_0, D_c and D_m of one run, whose modulations differ, against a run of each."""
    inputs = random_inputs(adapter, 2)
    base = adapter.predict(inputs)
    with image_tokens_moved(adapter, block, inputs["text"].shape[1]):
        moved = adapter.predict(inputs)
    mask = torch.zeros(adapter.channels)
    mask[flux2.PLANTED] = 1
    branch = torch.tensor([0, 1, 1])
    keep = torch.ones(3, inputs["position"].shape[0])
    keep[2] = 0
    forked = ForkedTransformer(adapter, block)
    source = torch.zeros(keep.shape, dtype=torch.int64)
    got = forked(*condition(adapter, inputs), mask, REF * mask, branch, keep, source)
    torch.testing.assert_close(got[:2], base, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[2], moved[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(base, moved, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("block", range(3))
def test_a_block_that_is_skipped_returns_both_streams(
    adapter: Flux2KleinAdapter, block: int
) -> None:
    entered: dict[int, torch.Tensor] = {}

    def look(k: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            hidden, text = kwargs["hidden_states"], kwargs["encoder_hidden_states"]
            entered[k] = hidden if text is None else torch.cat([text, hidden], dim=1)

        return hook

    handles = [
        module.register_forward_pre_hook(look(k), with_kwargs=True)
        for k, module in enumerate(adapter.blocks())
    ]
    try:
        with skip_block(adapter, block):
            adapter.predict(random_inputs(adapter, 2))
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(entered[block + 1], entered[block], rtol=0, atol=0)

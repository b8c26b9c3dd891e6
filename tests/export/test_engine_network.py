"""One plan at a time: which of the builder's messages fail it, and its timing cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from intaglio_export.adapters.base import EncoderLayout
from intaglio_export.bundle.writing import Stage, write_stages
from intaglio_export.engines.bundle import Component, components, read_manifest
from intaglio_export.engines.checks import check_engine
from intaglio_export.engines.log import LogReader
from intaglio_export.engines.network import BuildSpec, build_engine
from intaglio_export.engines.packages import Package, open_package
from intaglio_export.engines.profiles import default_profile, input_shapes
from intaglio_export.networks.encoders import text_encoder_unit
from tests.families.parts import make_t5, make_t5_tokenizer

pytestmark = pytest.mark.exports

# As TensorRT 8 and 10 have said them in builds that succeeded.
PASSING = [
    "Tactic Device request: 538MB Available: 166MB. Device memory is insufficient to use tactic.",
    "UNSUPPORTED_STATE: Skipping tactic 44 due to insufficient memory on requested size of"
    " 1048576000 detected for tactic 0x6e2a3c7a7fc5e4e1.",
    "Failed to deserialize timing cache. Returning an empty timing cache.",
]


class Timing(Package):
    """TensorRT-RTX, whose API takes timing caches as TensorRT's does."""

    @property
    def timing_cache(self) -> bool:
        return True


@pytest.fixture
def order(forked_bundle: Path, tmp_path: Path) -> BuildSpec:
    manifest = read_manifest(forked_bundle)
    (encoder,) = (c for c in components(forked_bundle, manifest) if c.kind == "vae_encoder")
    shapes = input_shapes(encoder, default_profile(manifest), manifest)
    graph = forked_bundle / encoder.path
    cache = tmp_path / "timings.timing_cache"
    return BuildSpec("tensorrt-rtx", graph, ("sm89",), (), (shapes,), (), cache)


@pytest.mark.filterwarnings("ignore:.*Timing cache operations:DeprecationWarning")
def test_a_timing_cache_is_kept_and_a_cut_one_made_anew(order: BuildSpec) -> None:
    package = open_package("tensorrt-rtx")
    timing = Timing(package.backend, package.module, package.version)
    for known in (b"", b"foreign"):
        if known:
            order.timing_cache.write_bytes(known)
        build_engine(timing, order, lambda what, done: None)
        assert order.timing_cache.read_bytes().startswith(b"ptrt")
        assert [path.name for path in order.timing_cache.parent.iterdir()] == [
            order.timing_cache.name
        ]
    build_engine(
        package, replace(order, timing_cache=Path("/none/at/all")), lambda what, done: None
    )


@pytest.mark.parametrize("message", PASSING)
def test_kernels_that_are_left_out_fail_no_build(message: str) -> None:
    timing, ahead = LogReader(True), LogReader(False)
    for reader in (timing, ahead):
        reader.add(message, True)
    assert (timing.problems, timing.remarks) == ([], [message])
    assert ahead.problems == [message]


def test_a_profile_that_contradicts_the_graph_fails_any() -> None:
    message = "Profile 0: min of tensor latent is out of range"
    reader = LogReader(True)
    reader.add(message, True)
    assert reader.problems == [message]


def test_tables_of_positions_are_no_weights(tmp_path: Path) -> None:
    """A T5 at its pipeline's length has more bytes of them than a small one has weights."""
    t5 = make_t5(make_t5_tokenizer(), 48)
    weights = sum(parameter.nbytes for parameter in set(t5.parameters()))
    layout = EncoderLayout("tokenizer_3", 256, ("hidden",))
    unit = text_encoder_unit(t5, "text_encoder_3", layout, torch.float32)
    write_stages([Stage(t5, [unit])], tmp_path, lambda what, done: None)
    inputs, outputs = ([t.to_json() for t in ts] for ts in (unit.spec.inputs, unit.spec.outputs))
    path = unit.spec.path
    part = Component("text_encoder", tmp_path, path, "text_encoder_3", inputs, outputs)
    assert abs(part.weights_bytes - weights) < 0.05 * weights
    assert part.table_bytes > 256 * 256 * 8
    shapes = {"token_ids": ((1, 256), (1, 256), (2, 256))}
    order = BuildSpec("tensorrt-rtx", tmp_path / path, ("sm89",), (), (shapes,), (), Path())
    _, log = build_engine(open_package("tensorrt-rtx"), order, lambda what, done: None)
    check_engine(part, order, log)

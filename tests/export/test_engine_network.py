"""One plan at a time: which of the builder's messages fail it, and its timing cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from intaglio_export.adapters.layouts import EncoderLayout
from intaglio_export.bundle.writing import Stage, write_stages
from intaglio_export.engines import engine_file
from intaglio_export.engines.bundle import Component, components, read_manifest
from intaglio_export.engines.checks import check_engine, remarks
from intaglio_export.engines.log import EngineLog, LogReader
from intaglio_export.engines.network import BuildSpec, build_engine
from intaglio_export.engines.packages import Package, open_package
from intaglio_export.engines.profiles import default_profile, input_shapes
from intaglio_export.engines.worker import Built
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
def test_a_warning_that_the_engine_survives_is_a_remark(message: str) -> None:
    reader = LogReader()
    reader.add(message, "warning")
    assert (reader.problems, reader.result().remarks) == ([], (message,))


@pytest.mark.parametrize("level", ["warning", "error"])
def test_a_profile_that_contradicts_the_graph_fails_any(level: Literal["warning", "error"]) -> None:
    message = "Profile 0: min of tensor latent is out of range"
    reader = LogReader()
    reader.add(message, level)
    assert reader.problems == [message]


def test_a_log_of_other_words_fails_no_build(order: BuildSpec, forked_bundle: Path) -> None:
    """What the log of another version does not say is not reported, and the engine is checked."""
    manifest = read_manifest(forked_bundle)
    (part,) = (c for c in components(forked_bundle, manifest) if c.kind == "vae_encoder")
    engine = build_engine(open_package("tensorrt-rtx"), order, lambda what, done: None)
    assert remarks(part, engine.log) == []
    check_engine(part, order, engine.bindings)
    (said,) = remarks(part, EngineLog())
    assert "does not list the layers" in said
    built = Built(engine.header, engine.bindings, EngineLog(), engine.plan.nbytes, "0" * 64)
    entry = engine_file.entry("0" * 16, part, manifest, built, [1000])
    assert entry["weights_bytes"] == part.weights_bytes
    assert entry["activation_bytes"] == [1000]
    assert entry["inputs"][0]["shape"] == [1, 3, -1, -1]


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
    engine = build_engine(open_package("tensorrt-rtx"), order, lambda what, done: None)
    check_engine(part, order, engine.bindings)
    assert remarks(part, engine.log) == []

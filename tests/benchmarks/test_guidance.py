"""The comparison of guidance methods: its rules, its costs, and a short run on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.guidance.__main__ import report
from benchmarks.guidance.comparison import RANDOM, Bench, Sizes
from benchmarks.guidance.methods import BASE, grids, row_blocks
from benchmarks.guidance.rules import MOMENTUM, THRESHOLD, Rule, Ruled, amplified, rule_of
from intaglio.torch_reference.model import Step
from tests.analysis.conftest import judge_folder  # noqa: F401  a fixture
from tests.families.parts import MAX_LENGTH
from tests.families.sd3 import make_pipeline

STEPS = 6


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, judge_folder: Path) -> Path:  # noqa: F811
    """A tiny model with a judge, settings and a weaker model."""
    folder = tmp_path_factory.mktemp("compared")
    make_pipeline().save_pretrained(folder)
    make_pipeline(seed=1).transformer.save_pretrained(folder / "weaker")
    (folder / "judge").symlink_to(judge_folder)
    settings = {
        "block": 1, "channels": [3, 5], "keep": 0.5, "dg_scale": 2.0, "cfg_scale": 2.0,
        "steps": STEPS, "max_sequence_length": MAX_LENGTH,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def bench(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(model_folder, tmp_path_factory.mktemp("pictures"))


def test_tag_amplifies_what_is_across_the_latents() -> None:
    x, d = np.random.default_rng(0).normal(size=(2, 3, 4 * 5 * 5))
    along = np.einsum("nf,nf->n", x, d) / np.einsum("nf,nf->n", x, x)
    expected = 1.5 * d - 0.5 * along[:, None] * x
    shape = (3, 4, 5, 5)
    got = amplified(*(torch.from_numpy(v).reshape(shape).float() for v in (x, d)), 1.5)
    np.testing.assert_allclose(got.numpy().reshape(3, -1), expected, rtol=1e-5, atol=1e-6)


def test_the_rules_follow_their_formulas() -> None:
    """docs/guidance.md has them; APG's is the second step's, so that it has momentum."""
    x, *pairs = np.random.default_rng(0).normal(size=(5, 3, 100))
    (c, u), (c2, u2) = pairs[:2], pairs[2:]
    sigma, scale = 0.7, 2.5

    def run(rule: Rule, index: int, *pair: np.ndarray) -> np.ndarray:
        latent, *given = (torch.from_numpy(v).reshape(3, 4, 5, 5) for v in (x, *pair))
        step = Step(latent, torch.tensor(0.0), index, STEPS, sigma)
        result: np.ndarray = rule(step, *given).numpy().reshape(3, -1)
        return result

    def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a * b).sum(1, keepdims=True)

    apg = rule_of(Ruled(scale, rule="apg"))
    run(apg, 0, c, u)
    clean = x - sigma * c2
    d = -sigma * (c2 - u2) + MOMENTUM * -sigma * (c - u)
    d = d * np.minimum(1, THRESHOLD / np.sqrt(dot(d, d)))
    guided = clean + (scale - 1) * (d - dot(d, clean) / dot(clean, clean) * clean)
    np.testing.assert_allclose(run(apg, 1, c2, u2), (x - guided) / sigma, rtol=1e-5, atol=1e-6)

    zero = rule_of(Ruled(scale, rule="cfg-zero", zero_steps=1))
    assert not run(zero, 0, c, u).any()
    expected = c + (scale - 1) * (c - dot(c, u) / dot(u, u) * u)
    np.testing.assert_allclose(run(zero, 1, c, u), expected, rtol=1e-5, atol=1e-6)

    length = np.sqrt(dot(c - u, c - u) / dot(u, u))
    expected = c + (scale - 1) * np.exp(-3 * length) * (c - u)
    mambo = rule_of(Ruled(scale, rule="mambo-g", alpha=3.0))
    np.testing.assert_allclose(run(mambo, 1, c, u), expected, rtol=1e-5, atol=1e-6)

    first = np.linalg.svd(np.stack([c, u], 1), full_matrices=False)[2][:, 0]
    expected = c + (scale - 1) * (c - dot(u, first) * first)
    tangential = rule_of(Ruled(scale, rule="tcfg"))
    np.testing.assert_allclose(run(tangential, 1, c, u), expected, rtol=1e-5, atol=1e-6)


def test_every_setting_costs_as_much(bench: Bench) -> None:
    for settings in grids(bench.model, bench.given, bench.weaker).values():
        for setting in settings:
            steps = bench.equal_steps(setting)
            one = row_blocks(setting.method, steps, bench.model.blocks, bench.share) / steps
            assert abs(bench.row_blocks(setting) - bench.budget) <= 0.75 * one, setting.words
    own = bench.own_setting()
    assert bench.equal_steps(own) == STEPS
    # Blocks 0 and 1 with two rows, the others with three.
    assert bench.budget == STEPS * (2 * 2 + 3 * (bench.model.blocks - 2))


def test_a_short_run(model_folder: Path, forked_bundle: Path, tmp_path: Path) -> None:
    found = report(model_folder, forked_bundle, tmp_path, Sizes(5, 6), processes=1, rounds=1)
    found.write(tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())
    methods = told["Methods at equal cost"]["methods"]
    assert {BASE, RANDOM, "none", "CFG", "APG", "TCFG", "MAMBO-G", "autoguidance"} <= methods.keys()
    for name, row in methods.items():
        assert row["times"]["torch"] > 0, name
        assert row["values"]["frechet"] > 0, name
    tried = told["The search"]["tried"]
    distances = {t["setting"]: t["frechet"] for t in tried if t["method"] == BASE}
    assert distances[methods[BASE]["setting"]] == min(distances.values())
    page = (tmp_path / "report.md").read_text()
    assert all(f"| {name} |" in page for name in methods)

"""`intaglio probe` from end to end on a tiny model: the page, its files, and error messages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from intaglio.analysis.experiments import baselines, effects, failures
from intaglio.analysis.probe import model_probe
from intaglio.torch_reference.guidance import Method, Suppressed
from intaglio.torch_reference.model import Model
from intaglio_export.errors import ExportError
from intaglio_export.options import read_settings
from tests.analysis.conftest import Command
from tests.families import FAMILIES
from tests.families.sd3 import PLANTED, make_pipeline

COMMAND = Path(sysconfig.get_path("scripts")) / "intaglio"
PARTS = [
    "Which channels are massive",
    "Where they come from",
    "Where in the image they are",
    "What they do",
    "Detail Guidance against CFG alone",
    "Failure cases",
    "Settings",
    "Attention sinks",
]


@pytest.fixture(scope="module")
def source(sd3_folder: Path, judge_folder: Path, tmp_path_factory: Any) -> Path:
    """The tiny model's folder with settings, a judge and a weaker model."""
    folder = tmp_path_factory.mktemp("probed") / "tiny"
    shutil.copytree(sd3_folder, folder)
    shutil.copytree(judge_folder, folder / "judge")
    make_pipeline(seed=5).transformer.save_pretrained(folder / "weaker")
    return folder


@pytest.fixture(scope="module")
def small() -> Any:
    """Let the probe draw fewer pictures than is useful."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_probe, "OBSERVED", 8)
        patch.setattr(model_probe, "TRIED", 8)
        patch.setattr(effects, "LEAST", 4)
        patch.setattr(baselines, "PILOT", 4)
        patch.setattr(failures, "FACTORS", (0.0, 1.0, 4.0))
        yield


def request(source: Path, output: Path, **how: Any) -> model_probe.ProbeRequest:
    return model_probe.ProbeRequest(str(source), output, steps=2, images=8, seeds=4, **how)


@pytest.fixture(scope="module")
def report(source: Path, small: Any, tmp_path_factory: Any) -> Path:
    output: Path = tmp_path_factory.mktemp("report")
    torch.set_num_threads(1)
    model_probe.probe(request(source, output), lambda what, share: None)
    return output


class Page(HTMLParser):
    """Collects the references of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.references += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_has_all_parts_and_opens_offline(report: Path) -> None:
    html = (report / "index.html").read_text("utf-8")
    headings = re.findall(r"<h2>\d\. (.*)</h2>", html)
    assert headings == PARTS
    page = Page()
    page.feed(html)
    files = [r for r in page.references if not r.startswith("#")]
    assert len(files) > 10
    for name in files:
        assert (report / name).is_file(), name
        if name.endswith(".png"):
            with Image.open(report / name) as picture:
                picture.load()
                assert np.asarray(picture.convert("L")).std() > 1


def test_numbers_are_behind_every_part(report: Path) -> None:
    numbers = json.loads((report / "report.json").read_text("utf-8"))
    markdown = (report / "report.md").read_text("utf-8")
    for part in PARTS:
        assert numbers[part]["claims"]
        assert f". {part}\n" in markdown
    assert numbers[PARTS[0]]["massive"]["1"] == [PLANTED]
    shares = numbers[PARTS[1]]["variance_explained"]
    assert sum(values[0] for values in shares.values()) == pytest.approx(1, abs=1e-3)
    assert set(numbers[PARTS[4]]["arms"]) == {
        "none", "cfg", "cfg+dg", "cfg at omega", "cfg+random", "dg", "cfg+blurred",
        "cfg+skip-layer", "cfg+autoguidance", "cfg+random as far 1", "cfg+random as far 2",
        "cfg+random as far 3", "cfg+no top key", "cfg+no random key",
    }  # fmt: skip
    gap = numbers[PARTS[4]]["minus_cfg"]["cfg+dg"]["frechet"]
    assert gap["low"] <= gap["high"]


def test_export_reads_the_settings(report: Path) -> None:
    said = json.loads((report / "settings.json").read_text("utf-8"))
    settings = read_settings(report / "settings.json")
    for name in ("block", "dg_scale", "cfg_scale"):
        assert getattr(settings, name) == said[name]
    channels = settings.channel_choice()
    assert channels is not None
    assert list(channels.channels) == said["channels"]


def test_a_second_probe_draws_nothing_anew(report: Path, source: Path, small: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in (report / "pictures").iterdir()}
    numbers = (report / "report.json").read_text("utf-8")
    model_probe.probe(request(source, report), lambda what, share: None)
    after = {path: path.stat().st_mtime_ns for path in (report / "pictures").iterdir()}
    assert after == before
    assert (report / "report.json").read_text("utf-8") == numbers


def test_without_a_judge_no_settings_are_recommended(
    sd3_folder: Path, small: Any, tmp_path: Path
) -> None:
    (tmp_path / "settings.json").write_text("{}")  # from an earlier probe with a judge
    found = model_probe.probe(request(sd3_folder, tmp_path), lambda what, share: None)
    assert [section.title for section in found.sections] == PARTS
    assert "without a judge" in found.sections[6].claims[0]
    assert not (tmp_path / "settings.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flux-dev", "dit", "pixart-sigma"])
def test_other_families_are_probed(family: str, small: Any, tmp_path: Path) -> None:
    FAMILIES[family].make().save_pretrained(tmp_path / "model")
    found = model_probe.probe(
        request(tmp_path / "model", tmp_path / "out"), lambda what, share: None
    )
    # FLUX.1 dev was distilled to do without CFG.
    part = "no guidance" if family == "flux-dev" else "CFG alone"
    parts = [f"Detail Guidance against {part}" if k == 4 else name for k, name in enumerate(PARTS)]
    assert [section.title for section in found.sections] == parts
    channels, _, where, _, comparison = (section.numbers for section in found.sections[:5])
    assert channels["massive"] == {str(k): [PLANTED] for k in range(4)}
    assert channels["largest_ratio"].shape == (4, 2)
    assert where["channels"] == [PLANTED]
    assert 0 < np.min(where["variation"]) < np.inf
    # FLUX.1-dev draws without CFG.
    assert comparison["omega"] is None if family == "flux-dev" else np.isfinite(comparison["omega"])
    assert all(0 < norm < np.inf for norm in comparison["norms"].values())
    caption = found.sections[2].figures[0].caption
    assert ("class" in caption) == (family == "dit")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"judge": Path("nowhere")}, "judge nowhere cannot be read"),
        ({"weaker": Path("nowhere")}, "weaker model nowhere is not a folder"),
        ({"settings": Path("nowhere.json")}, "nowhere.json"),
        ({"prompts": Path("nowhere.txt")}, "leave out --prompts or the judge"),
        ({"height": 33}, "--height 33: sizes of this model are multiples of 4"),
    ],
)
def test_mistakes_are_named(
    source: Path, small: Any, tmp_path: Path, how: dict[str, Any], says: str
) -> None:
    with pytest.raises(ExportError, match=re.escape(says)):
        model_probe.probe(request(source, tmp_path, **how), lambda what, share: None)


@pytest.mark.parametrize(("blocks", "says"), [(0, "no"), (1, "1")])
def test_a_model_without_blocks_to_compare_is_refused(
    blocks: int, says: str, source: Path, small: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    shutil.copytree(source, folder)
    pipeline = make_pipeline()
    pipeline.transformer.transformer_blocks = pipeline.transformer.transformer_blocks[-1:][:blocks]
    pipeline.transformer.register_to_config(num_layers=blocks)
    pipeline.transformer.save_pretrained(folder / "transformer")
    with pytest.raises(ExportError, match=f"{says} transformer blocks, so there is nothing"):
        model_probe.probe(request(folder, tmp_path / "out"), lambda what, share: None)


def test_the_command_says_what_is_wrong_in_one_line(
    source: Path, tmp_path: Path, command: Command
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    cases = [
        ((source, "-o", blocked / "report"), 3, "cannot be written to"),
        ((source, "-o", tmp_path / "a", "--seeds", 3), 2, "--seeds"),
        ((source, "-o", tmp_path / "b", "--images", 3), 2, "needs more pictures"),
        ((tmp_path / "nowhere", "-o", tmp_path / "c"), 3, "does not exist"),
        ((source,), 2, "--output"),
    ]
    for args, code, says in cases:
        found, out, err = command(*args)
        assert (found, says in err) == (code, True), err
        assert err.splitlines()[-1].startswith("intaglio: "), err
        assert not out


@pytest.mark.slow
def test_the_installed_command_does_too(tmp_path: Path) -> None:
    args = [COMMAND, "probe", tmp_path / "nowhere", "-o", tmp_path / "out"]
    done = subprocess.run(args, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert "does not exist" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("intaglio: ")


def test_interventions_move_the_stream_as_they_say() -> None:
    stream = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))
    stream[..., PLANTED] += 30
    suppressed = Suppressed(1, (PLANTED,))
    means = np.arange(64, dtype=np.float32)
    done = effects.interventions(suppressed, 64, (4, 4), means, [5])
    moved = {n: i.hidden(stream) - stream for n, i in done.items() if i.hidden is not None}
    far = moved["zeroed"].norm(dim=-1)
    torch.testing.assert_close(far, stream[..., PLANTED].abs())
    torch.testing.assert_close(moved["random, as far moved"].norm(dim=-1), far)
    assert (moved["random, as far moved"][..., PLANTED] == 0).all()
    assert (moved["random zeroed"].norm(dim=-1) < far).all()
    replaced = stream + moved["replaced by means"]
    torch.testing.assert_close(replaced[..., PLANTED], torch.full((2, 16), float(PLANTED)))
    middle = moved["zeroed on middle tokens"].norm(dim=-1).reshape(2, 4, 4) > 0
    assert middle.sum() == 2 * 4
    assert middle[:, 1:3, 1:3].all()
    assert done["text's zeroed"].hidden is None
    zeroed = done["text's zeroed"].text(stream)
    torch.testing.assert_close(zeroed, stream * (torch.arange(64) != 5))
    assert "text's zeroed" not in effects.interventions(suppressed, 64, (4, 4), means, [])


def test_channels_are_zeroed_after_every_block(model: Model) -> None:
    adapter, channels = model.adapter, [[3, 5], [7, 1], [0, 63], [2, 4]]
    seen: dict[int, torch.Tensor] = {}
    with effects.zeroed_everywhere(adapter, channels):
        handles = [
            block.register_forward_hook(lambda m, args, out, k=k: seen.update({k: out[1]}))
            for k, block in enumerate(adapter.transformer.transformer_blocks)
        ]
        model.sample(Method().predictor(model), [0], 1)
    for handle in handles:
        handle.remove()
    for block, which in enumerate(channels):
        zeros = (seen[block] == 0).all(dim=1)[0].nonzero().flatten().tolist()
        assert zeros == sorted(which)


def test_random_channels_are_others_and_repeatable() -> None:
    suppressed = Suppressed(1, (3, 5, 9), ref=(0.0, 1.0, 2.0))
    one, again, other = (baselines.random_channels(suppressed, 64, draw) for draw in (0, 0, 1))
    assert one == again != other
    assert len(one.channels) == 3
    assert not set(one.channels) & {3, 5, 9}


def test_importing_intaglio_stays_light() -> None:
    heavy = ("torch", "diffusers", "scipy", "matplotlib")
    code = f"import sys, intaglio; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

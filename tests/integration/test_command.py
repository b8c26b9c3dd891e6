"""Compare what the command writes with Python, Pillow and arithmetic."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import intaglio
from intaglio import _core
from tests.bundles import SD3_SETTINGS
from tests.fake_bundle import make_bundle
from tests.integration.conftest import PROMPT, Command, check

GUIDED = ("--steps", 3, "--cfg-scale", 2, "--dg-scale", 1)
GUIDED_PYTHON: dict[str, Any] = {"steps": 3, "cfg_scale": 2.0, "dg_scale": 1.0}
SIZE = 32
EULER = "FlowMatchEulerDiscreteScheduler"


def latents(command: Command, bundle: Path, *args: Any) -> np.ndarray[Any, Any]:
    """Run generate and return the final latents."""
    command.draw(bundle, *args, "--latents-out", "latents.npy")
    return np.load(command.folder / "latents.npy")


def report(command: Command, bundle: Path, *args: Any) -> dict[str, Any]:
    command.draw(bundle, *args, "--report", "report.json")
    loaded: dict[str, Any] = json.loads((command.folder / "report.json").read_text())
    return loaded


def picture(path: Path, value: int | None, size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    """Write a PNG with Pillow that has one grey value, or noise for None."""
    random = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    pixels = random if value is None else np.full_like(random, value)
    Image.fromarray(pixels).save(path)
    return path


def test_final_latents_equal_pythons(
    command: Command, bundle: Path, forked_bundle: Path, pipeline: intaglio.Pipeline
) -> None:
    opened = pipeline if bundle == forked_bundle else intaglio.Pipeline.open(bundle)
    expected = opened.generate(PROMPT, seeds=7, batch=2, **GUIDED_PYTHON).latents
    got = latents(command, bundle, *GUIDED, "--seed", 7, "--batch", 2)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


def test_given_latents_replace_the_noise(command: Command, forked_bundle: Path) -> None:
    torch = pytest.importorskip("torch")
    noise = torch.randn((2, 4, 16, 16), generator=torch.Generator("cpu").manual_seed(3)).numpy()
    np.save(command.folder / "noise.npy", noise)
    given = latents(command, forked_bundle, *GUIDED, "--latents-in", "noise.npy")
    drawn = latents(command, forked_bundle, *GUIDED, "--seed", 3, "--batch", 2)
    assert given.shape == drawn.shape == noise.shape
    np.testing.assert_allclose(given, drawn, atol=1e-4)
    np.save(command.folder / "double.npy", noise.astype(np.float64))
    from_double = latents(command, forked_bundle, *GUIDED, "--latents-in", "double.npy")
    np.testing.assert_array_equal(from_double, given)


def test_metadata_draws_the_image_again(
    command: Command, forked_bundle: Path, pipeline: intaglio.Pipeline, tmp_path: Path
) -> None:
    prompt = "[a] naïve ☂"  # so few tokens that none is cut and no note is printed
    flags = ["--seeds", "4,9", "--cfg-scale", "1.5:3", "--dg-window", "0:0.5", "--steps", 3]
    flags += ["--scheduler", "heun", "--height", 24, "--ma-channels", "2,5", "--dg-scale", "0.7"]
    command.draw(forked_bundle, "--prompt", prompt, *flags)
    written = command.folder / "image-1.png"
    with Image.open(written) as image:
        text = dict(image.text)
        assert "intaglio:inputs" not in text
        assert image.size == (SIZE, 24)
    assert text["Description"] == prompt
    assert text["intaglio:image"] == "1"
    assert text["Software"] == f"Intaglio {intaglio.__version__}"
    assert (text["intaglio:device"], text["intaglio:precision"]) == ("cpu", "float32")

    options = json.loads(text["intaglio:options"])
    assert options["seeds"] == [4, 9]
    again = pipeline.generate(**options)
    again.save(tmp_path / "again.png")
    assert (tmp_path / "again-1.png").read_bytes() == written.read_bytes()


def test_metadata_can_be_left_out(command: Command, forked_bundle: Path) -> None:
    command.draw(forked_bundle, "--prompt", "secret", "--steps", 1, "--no-metadata")
    with Image.open(command.folder / "image.png") as image:
        image.load()
        assert image.text == {}
    assert b"secret" not in (command.folder / "image.png").read_bytes()


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.webp", "a.jxl", "a.png.txt"])
def test_only_png_is_written(command: Command, forked_bundle: Path, name: str) -> None:
    """A name that promises another format is refused before anything is drawn."""
    flags = ["--prompt", PROMPT, "--steps", 10000, "-o", name]
    check(
        command,
        2,
        "images are written as PNG; end the name in .png",
        *("generate", forked_bundle),
        *flags,
    )
    command.draw(forked_bundle, "--steps", 1, "-o", "a.PNG")
    command.draw(forked_bundle, "--steps", 1, "-o", "without_ending")


@pytest.mark.parametrize(
    "prompt", ["", "generate", "--steps", "-1", "a,b", "a\nb", "$HOME 'x' \"y\"", "%s"]
)
def test_any_text_is_a_prompt(command: Command, forked_bundle: Path, prompt: str) -> None:
    command.draw(forked_bundle, "--prompt", prompt, "--steps", 1)
    with Image.open(command.folder / "image.png") as image:
        assert image.text["Description"] == prompt


def test_each_seed_gets_a_numbered_file(command: Command, forked_bundle: Path) -> None:
    done = command(
        "generate", forked_bundle, "--prompt", PROMPT, *GUIDED, "--seeds", "5,6,5", "-o", "a.b.png"
    )
    names = ["a.b-0.png", "a.b-1.png", "a.b-2.png"]
    assert done.stdout.splitlines() == names
    assert sorted(p.name for p in command.folder.iterdir()) == names
    pixels = [np.asarray(Image.open(command.folder / name)) for name in names]
    np.testing.assert_array_equal(pixels[0], pixels[2])
    assert (pixels[0] != pixels[1]).any()
    command.draw(forked_bundle, *GUIDED, "--seed", 6, "-o", "alone.png")
    alone = np.asarray(Image.open(command.folder / "alone.png")).astype(int)
    assert abs(alone - pixels[1]).max() <= 1  # another batch size sums in another order


def test_strength_decides_how_many_steps_run(command: Command, forked_bundle: Path) -> None:
    picture(command.folder / "start.png", None)
    for strength, steps in ((0.5, 2), (1.0, 4), (0.3, 2), (0.25, 1)):
        done = report(
            command, forked_bundle, "--image", "start.png", "--strength", strength, "--steps", 4
        )
        assert len(done["step_seconds"]) == steps
    # With strength 1 noise replaces the whole picture.
    plain = latents(command, forked_bundle, *GUIDED)
    forgotten = latents(command, forked_bundle, *GUIDED, "--image", "start.png", "--strength", 1)
    kept = latents(command, forked_bundle, *GUIDED, "--image", "start.png", "--strength", 0.4)
    np.testing.assert_array_equal(forgotten, plain)
    assert np.abs(kept - plain).max() > 0.1
    with Image.open(command.folder / "image.png") as image:
        assert image.text["intaglio:inputs"] == "image"


def test_image_gives_the_size(command: Command, forked_bundle: Path) -> None:
    picture(command.folder / "start.png", 90, (40, 24))
    command.draw(forked_bundle, "--image", "start.png", "--steps", 2, "--strength", 0.5)
    with Image.open(command.folder / "image.png") as image:
        assert image.size == (40, 24)


def test_mask_padding_keeps_the_size_of_the_image(command: Command, forked_bundle: Path) -> None:
    picture(command.folder / "start.png", 90, (75, 33))
    mask = np.pad(np.full((6, 14), 255, np.uint8), ((10, 17), (30, 31)))
    Image.fromarray(mask).save(command.folder / "mask.png")
    flags = ["--image", "start.png", "--mask", "mask.png", "--mask-padding", 3]
    command.draw(forked_bundle, *flags, "--width", 40, "--height", 24, "--steps", 2)
    changed = (np.asarray(Image.open(command.folder / "image.png")) != 90).any(-1)
    assert changed[mask == 255].mean() > 0.5
    assert not changed[mask == 0].any()


def test_token_mask(command: Command, forked_bundle: Path) -> None:
    """Tokens that are black in the mask are not suppressed, so D_m = D_c and w has no effect."""
    for value in (0, 255):
        picture(command.folder / f"{value}.png", value, (19, 33))
    half = np.zeros((SIZE, SIZE), np.uint8)
    half[: SIZE // 2] = 255
    Image.fromarray(half).save(command.folder / "half.png")

    off = latents(command, forked_bundle, *GUIDED[:-1], 0)
    on = latents(command, forked_bundle, *GUIDED)
    black = latents(command, forked_bundle, *GUIDED, "--ma-tokens", "0.png")
    white = latents(command, forked_bundle, *GUIDED, "--ma-tokens", "255.png")
    upper = latents(command, forked_bundle, *GUIDED, "--ma-tokens", "half.png")
    np.testing.assert_allclose(black, off, atol=2e-5)
    np.testing.assert_array_equal(white, on)
    effect = np.abs(on - off).max()
    assert effect > 1e-2
    assert min(np.abs(upper - on).max(), np.abs(upper - off).max()) > effect / 100


def test_channels_change_without_an_export(command: Command, forked_bundle: Path) -> None:
    found = json.loads(command("inspect", forked_bundle, "--json").stdout)
    channels = ",".join(map(str, found["massive_activations"]["channels"]))
    default = latents(command, forked_bundle, *GUIDED)
    same = latents(command, forked_bundle, *GUIDED, "--ma-channels", channels)
    others = latents(command, forked_bundle, *GUIDED, "--ma-channels", "20,21,22,23")
    np.testing.assert_array_equal(same, default)
    assert np.abs(others - default).max() > 1e-3


@pytest.mark.parametrize(
    ("cfg_window", "dg_window", "steps", "batch"),
    [((0, 1), (0, 1), 5, 1), ((0.2, 0.7), (0.5, 1), 5, 2), ((0, 0.3), (0.3, 0.6), 10, 1)],
)
def test_rows_are_what_the_windows_say(
    command: Command,
    bundle: Path,
    cfg_window: tuple[float, float],
    dg_window: tuple[float, float],
    steps: int,
    batch: int,
) -> None:
    def inside(window: tuple[float, float]) -> int:
        # This computes in whole numbers, because 0.3 is not exact as a float.
        start, end = (round(edge * 100) for edge in window)
        return sum(start * steps <= 100 * i < end * steps for i in range(steps))

    cfg, dg = inside(cfg_window), inside(dg_window)
    done = report(
        command, bundle, "--steps", steps, "--batch", batch, "--cfg-scale", 2, "--dg-scale", 1,
        "--cfg-window", "{}:{}".format(*cfg_window), "--dg-window", "{}:{}".format(*dg_window),
    )  # fmt: skip
    assert done["forked_rows"] == batch * (steps + cfg + dg)
    dual = json.loads(command("inspect", bundle, "--json").stdout)["layout"] == "dual"
    assert done["base_rows"] == batch * (steps + cfg + (dg if dual else 0))


def test_report_says_what_ran(command: Command, forked_bundle: Path) -> None:
    done = report(command, forked_bundle, *GUIDED, "--ma-keep", "0.5:0", "--threads", 1)
    assert done["options"]["ma_keep"] == [0.5, 0.0]
    assert done["options"]["cfg_scale"] == 2.0
    assert done["backend"].split(",")[1:3] == [" cpu", " 1 thread"]
    seconds = done["seconds"]
    assert math.isclose(sum(done["step_seconds"]), seconds["denoise"], rel_tol=0.5)
    assert seconds["text"] + seconds["denoise"] + seconds["vae"] <= seconds["total"]
    with Image.open(command.folder / "image.png") as image:
        assert json.loads(image.text["intaglio:options"]) == done["options"]


def test_reuse_runs_branches_less_often(command: Command, forked_bundle: Path) -> None:
    flags = ("--steps", 5, "--cfg-scale", 2, "--dg-scale", 1)
    done = report(command, forked_bundle, *flags)
    assert done["unconditional_steps"] == done["degraded_steps"] == [0, 1, 2, 3, 4]
    assert "reuse_interval" not in done["options"]
    done = report(command, forked_bundle, *flags, "--reuse-interval", "3:1")
    assert done["unconditional_steps"] == done["degraded_steps"] == [0, 2, 3, 4]
    assert done["forked_rows"] == 5 + 4 + 4
    assert done["options"]["reuse_interval"] == [3.0, 1.0]


def test_skipped_steps_are_reported(command: Command, forked_bundle: Path) -> None:
    flags = ("--steps", 6, "--dg-scale", 0, "--cfg-scale", 2)
    done = report(command, forked_bundle, *flags)
    assert (done["evaluations"], done["skipped_steps"], done["largest_distance"]) == (6, [], 0)
    how = ("--skip-interval", 2, "--skip-tolerance", 1000)
    done = report(command, forked_bundle, *flags, *how)
    assert (done["evaluations"], done["skipped_steps"]) == (4, [3, 5])
    assert len(done["step_seconds"]) == 6
    assert done["forked_rows"] == 4 * 2
    assert done["largest_distance"] > 0
    assert done["options"]["skip_interval"] == 2
    done = report(command, forked_bundle, *flags, "--skip-interval", 2)
    assert done["options"]["skip_tolerance"] == _core.Guidance().skip_tolerance


def test_skip_auto_is_the_schedule_of_the_bundle(command: Command, forked_bundle: Path) -> None:
    """Export took it from the settings file, with what the evidence says of its cost."""
    entry = {**SD3_SETTINGS["skipping"][0]}
    evidence = entry.pop("evidence")
    entry |= {"evaluations": evidence["evaluations"], "median_error": evidence["error"]}
    entry["largest_error"] = evidence["largest_error"]
    assert json.loads((forked_bundle / "bundle.json").read_text())["skipping"] == [entry]
    done = report(command, forked_bundle, "--steps", 6, "--skip", "auto")
    assert done["skipped_steps"] == [3, 5]
    assert done["options"]["skip_steps"] == entry["skipped"]
    assert done["options"]["skip_tolerance"] == entry["tolerance"]
    assert "skip" not in done["options"]
    with Image.open(command.folder / "image.png") as image:
        assert json.loads(image.text["intaglio:options"]) == done["options"]
    shown = json.loads(command("inspect", forked_bundle, "--json").stdout)["skipping"]
    assert shown == [entry]


def test_threads_change_nothing_that_matters(command: Command, forked_bundle: Path) -> None:
    one, two = (latents(command, forked_bundle, *GUIDED, "--threads", n) for n in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_executable_and_entry_point_write_the_same_bytes(
    command: Command, entry_point: Command, bundle: Path
) -> None:
    command.draw(bundle, *GUIDED, "--seed", 11, "-o", "cpp.png")
    entry_point.draw(bundle, *GUIDED, "--seed", 11, "-o", "python.png")
    written = [(command.folder / name).read_bytes() for name in ("cpp.png", "python.png")]
    assert written[0] == written[1]
    assert written[0].startswith(b"\x89PNG")


def test_inspect_shows_the_manifest(command: Command, bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    shown = json.loads(command("inspect", bundle, "--json").stdout)
    for key in ("name", "family", "layout", "license", "producer"):
        assert shown[key] == manifest[key]
    assert shown["files"] == {name: f["bytes"] for name, f in manifest["files"].items()}
    assert (
        shown["bytes"]
        == sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file())
        - (bundle / "bundle.json").stat().st_size
    )
    assert shown["massive_activations"]["channels"] == manifest["massive_activations"]["channels"]
    people = command("inspect", bundle).stdout
    assert manifest["name"] in people
    assert manifest["layout"] in people


def test_inspect_lists_the_schedules_of_skipped_steps(command: Command, tmp_path: Path) -> None:
    file = make_bundle(tmp_path / "fake", "class") / "bundle.json"
    schedules: list[dict[str, Any]] = [
        {"steps": 28, "scheduler": EULER, "skipped": [4, 6, 8], "tolerance": 0.25,
         "evaluations": 25.5, "median_error": 0.0125, "largest_error": 0.0375},
        {"steps": 6, "scheduler": EULER, "skipped": [3], "tolerance": 0.1},
    ]  # fmt: skip
    file.write_text(json.dumps(json.loads(file.read_text()) | {"skipping": schedules}))
    assert json.loads(command("inspect", file.parent, "--json").stdout)["skipping"] == schedules
    people = re.findall(r"^skipping +(.*)$", command("inspect", file.parent).stdout, re.MULTILINE)
    assert people == [
        f"28 steps of {EULER}: skips 4,6,8; tolerance 0.25; 25.5 evaluations of the"
        " model in the mean; error of the final latents 1.25 % in the median, 3.75 % at most",
        f"6 steps of {EULER}: skips 3; tolerance 0.1",
    ]


def test_the_report_has_the_notes_that_are_printed(command: Command, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "fake", "class")
    flags = ("--class", 1, "--cfg-scale", 0.5, "--skip", "auto", "--report", "report.json")
    done = command("generate", bundle, *flags)
    printed = re.findall(r"^intaglio: note: (.*)$", done.stderr, re.MULTILINE)
    assert len(printed) == 2
    assert json.loads((command.folder / "report.json").read_text())["notes"] == printed


def test_help_lists_the_exit_codes(command: Command) -> None:
    errors = [
        error for error in vars(intaglio).values()
        if isinstance(error, type) and issubclass(error, intaglio.Error)
    ]  # fmt: skip
    for words in ([], ["generate"]):
        section = command(*words, "--help").stdout.split("Exit codes:")[1]
        codes = [int(code) for code in re.findall(r"^  ([0-9]+) +\S", section, re.MULTILINE)]
        assert codes == sorted({0} | {error.exit_code for error in errors})


def test_bench_compares_the_modes(command: Command, bundle: Path) -> None:
    flags = ("--steps", 2, "--batch", 2, "--repeats", 2, "--width", 48, "--json")
    done = json.loads(command("bench", bundle, *flags).stdout)
    assert (done["steps"], done["batch"], done["repeats"]) == (2, 2, 2)
    modes = {row["mode"]: row for row in done["modes"]}
    assert list(modes) == ["baseline", "cfg", "dg", "cfg+dg"]
    assert {m: row["forked_rows"] for m, row in modes.items()} == {
        "baseline": 4, "cfg": 8, "dg": 8, "cfg+dg": 12,
    }  # fmt: skip
    before = (done["block"] + 1) / done["blocks"]
    base = 12 if done["layout"] == "dual" else 8
    predicted = (base * before + 12 * (1 - before)) / 8
    assert math.isclose(modes["cfg+dg"]["predicted_ratio_to_cfg"], predicted)
    for row in modes.values():
        assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
        assert 0 < row["outside_network"] < 1
        assert row["allocations_per_step"] == 0
        assert row["ratio_to_predicted"] > 0
    assert modes["cfg"]["ratio_to_cfg"] == 1.0
    assert modes["cfg+dg"]["forwards_per_step"] == base / 4 * before + 3 * (1 - before)
    assert {name: row["copies_per_step"] for name, row in modes.items()} == {
        "baseline": 2, "cfg": 5, "dg": 2, "cfg+dg": 5,
    }  # fmt: skip
    weights = [f for f in (bundle / "transformer").iterdir() if f.suffix == ".data"]
    assert done["weights_bytes"] == sum(f.stat().st_size for f in weights)
    assert done["peak_memory_bytes"] > done["weights_bytes"]
    assert (done["height"], done["width"]) == (32, 48)


def test_help_names_every_option(command: Command) -> None:
    text = command("generate", "--help").stdout
    for info in _core.option_infos():
        for flag in info.flags.split(","):
            assert f"{flag} " in text.replace(",", " "), info.name
        assert info.value in text
    for name, value in (("seeds", 0), ("batch", 1), ("strength", 0.6), ("vae-tile", 1024)):
        assert re.search(rf"--{name} [^[]*\[{value}\]", text), name
    files = ("output", "image", "mask", "ma-tokens", "prompt-embeds", "latents-in", "latents-out")
    files = (*files, "report")
    for flag in files:
        assert f"--{flag} " in text
    for name in ("generate", "embed", "features", "inspect", "bench"):
        assert name in command("--help").stdout

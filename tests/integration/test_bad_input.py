"""Test that a wrong call gets one sentence, its exit code and no file, and the same in Python."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import intaglio
from intaglio import _core
from tests.integration.conftest import PROMPT, Command, check, in_python

ERRORS: dict[int, type[Exception]] = {
    2: intaglio.UsageError,
    3: intaglio.InputError,
    4: intaglio.UnavailableError,
    5: intaglio.OutOfMemoryError,
}
SHAPE = (1, 4, 16, 16)


@dataclass(frozen=True)
class Mistake:
    """A wrong call of generate, as flags of the command line and as keywords in Python."""

    says: str
    code: int
    flags: list[Any]
    keywords: dict[str, Any] = field(default_factory=dict)


def wrong(code: int, says: str, **keywords: Any) -> Mistake:
    """Return a mistake with these keywords and the flags that mean the same."""
    flags: list[Any] = []
    for name, value in keywords.items():
        separator = ":" if isinstance(value, tuple) else ","
        text = separator.join(map(str, value)) if isinstance(value, tuple | list) else value
        flags += [f"--{name.replace('_', '-')}", text]
    return Mistake(says, code, flags, keywords)


SHARED = {
    "steps 0": wrong(2, "steps 0: give 1 or more", steps=0),
    "steps -1": wrong(2, "steps -1: give 1 or more", steps=-1),
    "too many steps": wrong(2, "give 10000 or fewer", steps=2**31 - 1),
    "batch 0": wrong(2, "--batch must be at least 1", batch=0),
    "seeds and batch": wrong(2, "leave --batch out", seeds=[1, 2], batch=3),
    "height not divisible": wrong(2, "--height 34 does not fit", height=34),
    "width too large": wrong(2, "--width 4096 does not fit", width=4096),
    "height 0": wrong(2, "--height 0 does not fit", height=0),
    "height negative": wrong(2, "--height -4 does not fit", height=-4),
    "cfg not finite": wrong(2, "cfg-scale must be a finite number", cfg_scale=float("inf")),
    "cfg negative": wrong(2, "--cfg-scale -1 is below 0: give 1, which turns", cfg_scale=-1.0),
    "ramp to NaN": wrong(2, "dg-scale must be a finite number", dg_scale=(1.0, float("nan"))),
    "keep below 0": wrong(2, "ma-keep -0.5 is not 0 or more", ma_keep=(0.0, -0.5)),
    "window backwards": wrong(2, "holds no part of the run", cfg_window=(0.7, 0.2)),
    "window empty": wrong(2, "holds no part of the run", dg_window=(0.5, 0.5)),
    "interval grows": wrong(2, "reuse-interval 1:2 grows", reuse_interval=(1.0, 2.0)),
    "interval of no step": wrong(2, "reuse-interval 0 is not a number", reuse_interval=0.0),
    "skip interval grows": wrong(2, "skip-interval 1:2 grows", skip_interval=(1.0, 2.0)),
    "no tolerance": wrong(2, "above 0", skip_interval=2.0, skip_tolerance=0.0),
    "unknown skip": wrong(2, "--skip soon is unknown", skip="soon"),
    "window of no interval": wrong(2, "give --reuse-interval too", reuse_window=(0.0, 0.5)),
    "window outside": wrong(2, "holds no part of the run", dg_window=(0.0, 1.5)),
    "unknown rule": wrong(2, "--guidance best is unknown: give cfg, apg", guidance="best"),
    "another rule's number": wrong(
        2, "--guidance-eta belongs to --guidance apg", cfg_scale=3.0, guidance="tcfg",
        guidance_eta=0.5,
    ),
    "rule without CFG": wrong(2, "--guidance tcfg needs CFG", cfg_scale=1.0, guidance="tcfg"),
    "rescale without CFG": wrong(
        2, "--guidance-rescale needs CFG", cfg_scale=1.0, guidance_rescale=0.5
    ),
    "rescale above 1": wrong(2, "a number from 0 to 1", cfg_scale=3.0, guidance_rescale=1.5),
    "momentum above 1": wrong(
        2, "--guidance-momentum 2 is", cfg_scale=3.0, guidance="apg", guidance_momentum=2.0
    ),
    "tag with heun": wrong(
        2, "--guidance-tag is for --scheduler euler", guidance_tag=1.2, scheduler="heun"
    ),
    "list of another length": wrong(
        2, "--cfg-scale lists 3 values and the run has 4 steps: give one value for each step",
        cfg_scale=[7.0, 7.0, 3.0], steps=4,
    ),
    "list of intervals": wrong(2, "and no list", reuse_interval=[3.0, 2.0, 2.0], steps=3),
    "list below 0": wrong(2, "--cfg-scale -1 is below 0", cfg_scale=[3.0, -1.0, 2.0], steps=3),
    "no such block": wrong(2, "there is no block 40", slg_layers=[1, 40]),
    "block twice": wrong(2, "names a block twice", slg_layers=[1, 1]),
    "SLG beside DG": wrong(2, "give --dg-scale 0 or leave", slg_layers=[1], dg_scale=1.0),
    "SLG beside DG's window": wrong(2, "--dg-window is for", slg_layers=[1], dg_window=(0, 0.5)),
    "SLG beside ma-keep": wrong(2, "--ma-keep is for DG", slg_layers=[1], ma_keep=0.5),
    "SLG beside channels": wrong(2, "--ma-channels is for DG", slg_layers=[1], ma_channels=[1]),
    "scale of no layers": wrong(2, "give --slg-layers or --slg-share too", slg_scale=1.0),
    "window of no layers": wrong(2, "--slg-window is for blocks", slg_window=(0.0, 0.5)),
    "unknown scheduler": wrong(2, "use one of euler, heun, dpmpp-2m", scheduler="ddim"),
    "channel outside": wrong(2, "is not a channel of", ma_channels=[3, 64]),
    "channel negative": wrong(2, "is not a channel of", ma_channels=[-1]),
    "tile": wrong(2, "--vae-tile must be a multiple of 8", vae_tile=12),
    "prompt": Mistake(
        "not valid UTF-8 at byte 2", 3, ["--prompt", b"ab\xff"], {"prompt": "ab\udcff"}
    ),
    "negative prompt that no step uses": Mistake(
        "not valid UTF-8 at byte 0", 3, ["--cfg-scale", 1, "--negative-prompt", b"\xc3("],
        {"cfg_scale": 1.0, "negative_prompt": "\udcc3("},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_options_that_make_no_sense(
    command: Command, forked_bundle: Path, pipeline: intaglio.Pipeline, name: str
) -> None:
    mistake = SHARED[name]
    prompt = [] if "--prompt" in mistake.flags else ["--prompt", PROMPT]
    outputs = ["-o", "a.png", "--latents-out", "a.npy", "--report", "a.json"]
    sentence = check(
        command, mistake.code, mistake.says, "generate", forked_bundle, *prompt, *mistake.flags,
        *outputs,
    )  # fmt: skip
    with pytest.raises(ERRORS[mistake.code]) as raised:
        pipeline.generate(**({"prompt": PROMPT} | mistake.keywords))
    assert str(raised.value) == in_python(sentence)
    assert raised.value.exit_code == mistake.code  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "subcommand is required"),
        (["draw"], 'there is no command "draw": intaglio --help lists them'),
        (["generat"], '"generat" (did you mean generate?): intaglio --help lists them'),
        (["generate"], "bundle"),
        (["generate", "BUNDLE"], "--prompt is missing"),
        (
            ["generate", "BUNDLE", "--promt", "a boot"],
            "option --promt of intaglio generate (did you mean --prompt?); `intaglio generate --he",
        ),
        (["generate", "BUNDLE", "--prompt", "x", "--guidance-scale=3"], ": use --cfg-scale, or"),
        (["generate", "BUNDLE", "--prompt", "x", "--guidance_scale", "3"], ": use --cfg-scale, or"),
        (["generate", "BUNDLE", "--num-inference-steps", "4"], ": use --steps; `intaglio gen"),
        (["generate", "--foo"], "there is no option --foo of intaglio generate; `intaglio"),
        (["generate", "BUNDLE", "--size", "32x32"], ": use --width and --height; `intaglio"),
        (
            ["generate", "BUNDLE", "--cfg_scale", "3"],
            "there is no option --cfg_scale of intaglio generate: use --cfg-scale;",
        ),
        (["embed", "BUNDLE", "--negative_prompt", "x"], ": use --negative-prompt; `intaglio embed"),
        (["generate", "BUNDLE", "--prompt", "a", "red", "boot"], '"red" is one word too many for'),
        (["generate", "BUNDLE", "--prompt", "x", "--steps", "-3"], "intaglio: --steps -3: give"),
        (["generate", "BUNDLE", "--prompt", "x", "--stops", "3"], "(did you mean --steps?)"),
        (["generate", "BUNDLE", "--prompt", "x", "--cfg", "3"], "(did you mean --cfg-scale?)"),
        (["generate", "BUNDLE", "--prompt", "x", "--new\nline"], "--new line"),
        (["generate", "BUNDLE", "--prompt", "x", "extra"], "extra"),
        (["generate", "BUNDLE", "--prompt", "x", "--steps"], "--steps"),
        (["generate", "BUNDLE", "--prompt", "x", "--steps", "2.5"], "is not a whole number"),
        (["generate", "BUNDLE", "--prompt", "x", "--steps", "4294967297"], "not a whole number"),
        (["generate", "BUNDLE", "--prompt", "x", "--seed", "-1"], "for a random one give $RANDOM"),
        (["generate", "BUNDLE", "--prompt", "x", "--seeds", "1,,2"], "whole numbers"),
        (["generate", "BUNDLE", "--prompt", "x", "--cfg-scale", "1:2:3"], "--cfg-scale"),
        (["generate", "BUNDLE", "--prompt", "x", "--dg-window", "0.5"], "--dg-window"),
        (["generate", "BUNDLE", "--prompt", "x", "--ma-keep", "half"], "--ma-keep"),
        (["generate", "BUNDLE", "--prompt", "x", "--threads", "-1"], "--threads"),
        (
            ["generate", "BUNDLE", "--prompt", "x", "--threads", "999"],
            "--threads 999: give a number from 1 to",
        ),
        (["generate", "BUNDLE", "--prompt", "x", "-o", ""], "--output is empty"),
        (["generate", "BUNDLE", "--prompt", "x", "-o", "a.jpg"], "end the name in .png"),
        (["generate", "BUNDLE", "--prompt", "x", "-o", "a", "--report", "./a"], "two outputs"),
        (["inspect", "BUNDLE", "--yaml"], "--yaml"),
        (["bench", "BUNDLE", "--repeats", "0"], "--repeats must be at least 1"),
        (["bench", "BUNDLE", "--steps", "0"], "steps 0"),
    ],
)  # fmt: skip
def test_calls_that_make_no_sense(
    command: Command, forked_bundle: Path, args: list[str], says: str
) -> None:
    check(command, 2, says, *(forked_bundle if arg == "BUNDLE" else arg for arg in args))


def with_nan() -> np.ndarray[Any, Any]:
    values = np.zeros(SHAPE, np.float32)
    values[0, 3, 15, 15] = np.nan
    return values


@pytest.mark.parametrize(
    ("latents", "says"),
    [
        (with_nan(), "hold NaN or infinity"),
        (np.full(SHAPE, np.inf, np.float32), "hold NaN or infinity"),
        (np.zeros((1, 4, 16, 15), np.float32), "where [1, 4, 16, 16] float32 is needed"),
        (
            np.zeros(SHAPE[1:], np.float32),
            "have shape [4, 16, 16] where [1, 4, 16, 16] float32 is needed: the first axis counts "
            "images, give latents[None] for one",
        ),
        (np.zeros((0, 4, 16, 16), np.float32), "where [1, 4, 16, 16] float32 is needed"),
        (np.zeros(SHAPE, np.int64), "float32 is needed"),
    ],
    ids=["nan", "infinity", "shape", "rank", "empty", "integers"],
)
def test_latents_that_do_not_fit(
    command: Command, forked_bundle: Path, pipeline: intaglio.Pipeline, latents: Any, says: str
) -> None:
    np.save(command.folder / "in.npy", latents)
    flags = ["--prompt", PROMPT, "--latents-in", "in.npy"]
    sentence = check(command, 3, says, "generate", forked_bundle, *flags)
    if len(latents) == len(latents[:1]) == 1 or latents.ndim == 3:
        with pytest.raises(intaglio.InputError) as raised:
            pipeline.generate(PROMPT, latents=latents)
        assert str(raised.value) == in_python(sentence)


def npy(edit: Callable[[bytes], bytes]) -> bytes:
    """Return the file that numpy.save writes for valid latents, changed by `edit`."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(SHAPE, np.float32))
    return edit(buffer.getvalue())


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


PLAIN = "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (npy(lambda good: good[:-1]), "is truncated"),
        (npy(lambda good: good[:40]), "is truncated"),
        (npy(lambda good: good + b"\0"), "is truncated"),
        (b"", "is not a .npy file"),
        (npy(lambda good: b"PK" + good), "is not a .npy file"),
        (npy(lambda good: good.replace(b"<f4", b">f4")), "convert them to float32"),
        (npy(lambda good: good.replace(b"False", b"True ")), "numpy.ascontiguousarray(array)"),
        (npy(lambda good: good.replace(b"shape", b"sharp")), "header that cannot be read"),
        (header(PLAIN.format("4294967296, 4294967296")), "is truncated"),
        (header(PLAIN.format("999999999999,")), "is truncated"),
        (header(PLAIN.format("-1, -1")), "header that cannot be read"),
        (header(PLAIN.format("1" * 60000)), "header that cannot be read"),
        (header(PLAIN.format("1," * 30000)), "is truncated"),
    ],
)
def test_damaged_latents(command: Command, forked_bundle: Path, content: bytes, says: str) -> None:
    path = command.folder / "in.npy"
    path.write_bytes(content)
    flags = ["--prompt", PROMPT, "--latents-in", path]
    sentence = check(command, 3, says, "generate", forked_bundle, *flags)
    with pytest.raises(intaglio.InputError) as raised:
        _core.load_npy(path)
    assert str(raised.value) == in_python(sentence)


@pytest.mark.parametrize("flag", ["--image", "--mask", "--ma-tokens", "--latents-in"])
@pytest.mark.parametrize("kind", ["absent", "folder", "text", "cut", "loop"])
def test_files_that_cannot_be_read(
    command: Command, forked_bundle: Path, flag: str, kind: str
) -> None:
    path = command.folder / "in.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "cut":
        Image.new("RGB", (32, 32)).save(path)
        path.write_bytes(path.read_bytes()[:60])
    check(command, 3, str(path), "generate", forked_bundle, "--prompt", PROMPT, flag, path)


def test_pictures_that_do_not_fit(
    command: Command, forked_bundle: Path, pipeline: intaglio.Pipeline
) -> None:
    weak = {"strength": 1e-20, "steps": 2}
    cases: list[tuple[str, int, tuple[int, int], list[Any], dict[str, Any]]] = [
        ("image", 2, (32, 32), ["--strength", 0], {"strength": 0.0}),
        ("image", 2, (32, 32), ["--strength", 1.5], {"strength": 1.5}),
        ("image", 2, (32, 32), ["--strength", 1e-20, "--steps", 2], weak),
        ("ma_tokens", 3, (5, 5), [], {}),
        ("mask", 2, (32, 32), [], {}),
    ]  # fmt: skip
    for name, code, size, flags, keywords in cases:
        picture = Image.new("RGB", size)
        picture.save(command.folder / "in.png")
        flag = f"--{name.replace('_', '-')}"
        sentence = check(
            command, code, "", "generate", forked_bundle, "--prompt", PROMPT, flag, "in.png", *flags
        )
        with pytest.raises(ERRORS[code]) as raised:
            pipeline.generate(PROMPT, **{name: picture}, **keywords)
        assert str(raised.value) == in_python(sentence)

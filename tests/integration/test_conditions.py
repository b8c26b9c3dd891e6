"""What a call may ask to draw, by what the bundle is drawn by; and files of embeddings."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

import intaglio
from tests.fake_bundle import GUIDANCE, MAX_LENGTH, POOLED_WIDTH, SIZE, TEXT_WIDTH, make_bundle
from tests.integration.conftest import PROMPT, Command, check, in_python

EMBEDS = {
    "prompt_embeds": np.ones((1, 4, TEXT_WIDTH), np.float32),
    "pooled_prompt_embeds": np.ones((1, POOLED_WIDTH), np.float32),
    "negative_prompt_embeds": np.zeros((1, 4, TEXT_WIDTH), np.float32),
    "negative_pooled_prompt_embeds": np.zeros((1, POOLED_WIDTH), np.float32),
}
MASK = np.array([[1, 1, 0, 1]], np.float32)
LONG = "a dark boot and the coat " * 8


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, forked_bundle: Path) -> dict[str, Path]:
    """By what they are drawn by."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "class": make_bundle(folder / "class", "class", fixed_size=True),
        "mask": make_bundle(folder / "mask", "text", "text_mask"),
        "embeds": make_bundle(
            folder / "embeds", "text", "pooled", "guidance", packed=True, hoisted=True
        ),
        "prompt": forked_bundle,
    }


@pytest.fixture
def embeds(command: Command) -> Path:
    path = command.folder / "e.safetensors"
    save_file(EMBEDS, path)
    return path


@pytest.mark.parametrize(
    ("bundle", "options", "says"),
    [
        ("class", {}, "--class is missing: fake is drawn by class, give --class N from 0 to"),
        ("class", {"prompt": "x"}, "--prompt does not fit: fake is drawn by class, give"),
        ("class", {"prompt": "x", "class_label": 1}, "--prompt does not fit"),
        ("class", {"class_label": 1, "negative_prompt": "x"}, "--negative-prompt does not fit"),
        ("class", {"class_label": 1, "prompt_embeds": True}, "--prompt-embeds does not fit"),
        ("class", {"class_label": 10}, "--class 10 does not exist: fake is drawn by class, give "),
        ("class", {"class_label": -1}, "give --class N from 0 to 9"),
        ("class", {"class_label": 1, "distilled_guidance": 2.0}, "--distilled-guidance does not"),
        ("class", {"class_label": 1, "height": 8}, "fake draws 32x16 pixels only, not 32x8"),
        ("embeds", {}, "fake has no text encoders: give --prompt-embeds F.safetensors, which"),
        ("embeds", {"prompt": "x"}, "fake has no text encoders: give --prompt-embeds"),
        ("embeds", {"class_label": 1}, "by embeddings, give --prompt-embeds F.safetensors"),
        ("embeds", {"prompt": "x", "prompt_embeds": True}, "exclude each other: give one"),
        ("embeds", {"prompt_embeds": True, "negative_prompt": "x"}, "belongs in that file"),
        ("embeds", {"prompt_embeds": True, "distilled_guidance": float("inf")}, "finite number"),
        ("embeds", {"prompt_embeds": True, "distilled_guidance": 1e300}, "finite number"),
        ("prompt", {}, "--prompt is missing: "),
        ("prompt", {"class_label": 1}, "is drawn by prompt, give --prompt TEXT"),
        ("prompt", {"prompt": "x", "distilled_guidance": 2.0}, "no input for it, leave it out"),
        ("prompt", {"prompt": "x", "strength": 0.5}, "give --image too"),
    ],
)  # fmt: skip
def test_what_to_draw(
    command: Command,
    bundles: dict[str, Path],
    embeds: Path,
    bundle: str,
    options: dict[str, Any],
    says: str,
) -> None:
    if "prompt_embeds" in options:
        options = options | {"prompt_embeds": embeds}
    flags: list[Any] = []
    for name, value in options.items():
        flags += [f"--{name.removesuffix('_label').replace('_', '-')}", value]
    sentence = check(command, 2, says, "generate", bundles[bundle], *flags)
    with pytest.raises(intaglio.UsageError) as raised:
        intaglio.Pipeline.open(bundles[bundle]).generate(**options)
    assert str(raised.value) == in_python(sentence)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt_embeds": (1, 4, TEXT_WIDTH + 1)}, "prompt_embeds has shape [1, 4, 7] float"),
        ({"prompt_embeds": (4, TEXT_WIDTH)}, "where fake takes [1, S, 6] float32 of S >= 1"),
        ({"prompt_embeds": (1, 0, TEXT_WIDTH)}, "where fake takes [1, S, 6]"),
        ({"prompt_embeds": (2, 4, TEXT_WIDTH)}, "where fake takes [1, S, 6]"),
        ({"prompt_embeds": (1, 5, TEXT_WIDTH)}, "has 4 tokens where prompt_embeds has 5"),
        ({"pooled_prompt_embeds": (1, 4)}, "pooled_prompt_embeds has shape [1, 4] float32 where"),
        ({"pooled_prompt_embeds": None}, "lack pooled_prompt_embeds, which fake takes as [1, 5]"),
        ({"negative_pooled_prompt_embeds": None}, "lack negative_pooled_prompt_embeds"),
        ({"negative_prompt_embeds": None}, "without negative_prompt_embeds: write all of it"),
        (
            {"negative_prompt_embeds": None, "negative_pooled_prompt_embeds": None},
            "lack negative_prompt_embeds, which CFG needs: add them (`intaglio embed --negative",
        ),
        ({"prompt_attention_mask": (1, 4)}, "prompt_attention_mask is not an input of fake"),
        ({"prompt_embeds": None}, "holds no prompt_embeds"),
        ({"prompt_embed": (1,)}, 'holds "prompt_embed", which is not a prompt embedding'),
    ],
)  # fmt: skip
def test_embeddings_that_do_not_fit(
    command: Command, bundles: dict[str, Path], change: dict[str, Any], says: str
) -> None:
    tensors = EMBEDS | {k: np.ones(v, np.float32) for k, v in change.items() if v is not None}
    tensors = {k: v for k, v in tensors.items() if change.get(k, ()) is not None}
    path = command.folder / "e.safetensors"
    save_file(tensors, path)
    args = ("generate", bundles["embeds"], "--prompt-embeds", path)
    sentence = check(command, 3, says, *args)
    with pytest.raises(intaglio.InputError) as raised:
        intaglio.Pipeline.open(bundles["embeds"]).generate(prompt_embeds=path)
    assert str(raised.value) == in_python(sentence)


def test_embeddings_that_are_not_finite(command: Command, bundles: dict[str, Path]) -> None:
    path = command.folder / "e.safetensors"
    save_file(EMBEDS | {"prompt_embeds": np.full((1, 4, TEXT_WIDTH), np.nan, np.float32)}, path)
    check(command, 3, "prompt_embeds holds NaN", "generate", bundles["embeds"],
          "--prompt-embeds", path)  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a safetensors file"),
        (b"\x89PNG\r\n\x1a\n and more", "is truncated or is not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "has a header that cannot be read"),
        (struct.pack("<Q", 2) + b"{}", "holds no prompt_embeds"),
        (None, "is damaged or truncated at"),
    ],
)
def test_files_that_are_damaged(
    command: Command, bundles: dict[str, Path], embeds: Path, content: bytes | None, says: str
) -> None:
    embeds.write_bytes(embeds.read_bytes()[:-1] if content is None else content)
    args = ("generate", bundles["embeds"], "--prompt-embeds", embeds)
    sentence = check(command, 3, f"{embeds} {says}", *args)
    with pytest.raises(intaglio.InputError) as raised:
        intaglio.PromptEmbeds.load(embeds)
    assert str(raised.value) == in_python(sentence)


def test_drawing_by_class(command: Command, bundles: dict[str, Path]) -> None:
    flags = ("--class", 3, "--seeds", "1,2", "--report", "r.json")
    done = command("generate", bundles["class"], *flags)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((command.folder / "r.json").read_text())
    assert report["options"]["class_label"] == 3
    assert "distilled_guidance" not in report["options"]
    pipeline = intaglio.Pipeline.open(bundles["class"])
    with Image.open(command.folder / "image-1.png") as image:
        text = dict(image.text)
    assert "Description" not in text
    pipeline.generate(**json.loads(text["intaglio:options"])).save(command.folder / "again.png")
    written = [(command.folder / f"{name}-1.png").read_bytes() for name in ("again", "image")]
    assert written[0] == written[1]


def test_drawing_from_a_picture_of_another_size(command: Command, bundles: dict[str, Path]) -> None:
    """A model of one size scales the picture to it."""
    Image.new("RGB", (SIZE, SIZE)).save(command.folder / "in.png")
    draw = ("generate", bundles["class"], "--class", 1, "--image", "in.png")
    done = command(*draw, "--steps", 2, "-o", "out.png")
    assert done.returncode == 0
    assert "--image is 16x16 pixels and was stretched to 32x16, another shape" in done.stderr
    size = intaglio.Pipeline.open(bundles["class"]).bundle.latent
    with Image.open(command.folder / "out.png") as drawn:
        assert drawn.size == (size.max_width, size.max_height) != (SIZE, SIZE)
    check(command, 2, "leave --height and --width out", *draw, "--height", 2 * size.max_height)


def test_options_of_embeddings(command: Command, bundles: dict[str, Path], embeds: Path) -> None:
    done = command("generate", bundles["embeds"], "--prompt-embeds", embeds, "--report", "r.json")
    assert (done.returncode, done.stderr) == (0, "")
    options = json.loads((command.folder / "r.json").read_text())["options"]
    assert options["distilled_guidance"] == GUIDANCE
    assert "strength" not in options
    with Image.open(command.folder / "image.png") as image:
        assert image.text["intaglio:inputs"] == "prompt_embeds"
        assert "Description" not in image.text
    pipeline = intaglio.Pipeline.open(bundles["embeds"])
    ours = pipeline.generate(prompt_embeds=intaglio.PromptEmbeds(**EMBEDS))
    ours.save(command.folder / "ours.png")
    written = [(command.folder / f"{name}.png").read_bytes() for name in ("image", "ours")]
    assert written[0] == written[1]


def test_a_picture_from_embeddings_is_that_of_the_prompt(
    command: Command, entry_point: Command, bundle: Path
) -> None:
    """In both layouts; and Python's safetensors reads what is written."""
    words = ("--prompt", PROMPT, "--negative-prompt", "a coat")
    flags = ("--steps", 2, "--cfg-scale", 2, "--dg-scale", 1, "--seed", 5)
    done = command("embed", bundle, *words, "-o", "e.safetensors")
    assert (done.returncode, done.stdout, done.stderr) == (0, "e.safetensors\n", "")
    assert entry_point("embed", bundle, *words, "-o", "p.safetensors").returncode == 0
    assert sorted(p.name for p in command.folder.iterdir()) == ["e.safetensors", "p.safetensors"]
    first, second = ((command.folder / f"{n}.safetensors").read_bytes() for n in "ep")
    assert first == second
    command.draw(bundle, *words, *flags, "-o", "a.png", "--latents-out", "a.npy")
    done = command("generate", bundle, "--prompt-embeds", "e.safetensors", *flags, "-o", "b.png",
                   "--latents-out", "b.npy")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (command.folder / "a.npy").read_bytes() == (command.folder / "b.npy").read_bytes()
    pictures = [Image.open(command.folder / name).tobytes() for name in ("a.png", "b.png")]
    assert pictures[0] == pictures[1]

    read = load_file(command.folder / "e.safetensors")
    pipeline = intaglio.Pipeline.open(bundle)
    ours = pipeline.embed(PROMPT, "a coat")
    names = {
        f"{n}{name}"
        for n in ("", "negative_")
        for name in ("prompt_embeds", "pooled_prompt_embeds")
    }
    assert set(read) == names
    for name, tensor in read.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, getattr(ours, name))
    ours.save(command.folder / "q.safetensors")
    assert (command.folder / "q.safetensors").read_bytes() == first


def test_embedding_without_a_negative_prompt(command: Command, forked_bundle: Path) -> None:
    assert command("embed", forked_bundle, "--prompt", PROMPT, "-o", "e.st").returncode == 0
    assert set(load_file(command.folder / "e.st")) == {"prompt_embeds", "pooled_prompt_embeds"}
    args = ("generate", forked_bundle, "--prompt-embeds", "e.st")
    check(command, 3, "lack negative_prompt_embeds, which CFG needs", *args)
    done = command(*args, "--cfg-scale", 1, "--steps", 1)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("bundle", "args", "code", "says"),
    [
        ("prompt", ["-o", "e.st"], 2, "--prompt is missing"),
        ("prompt", ["--prompt", "x"], 2, "--output is missing"),
        ("prompt", ["--prompt", b"\xff", "-o", "e.st"], 3, "UTF-8"),
        ("prompt", ["--prompt", "x", "-o", "no/e.st"], 3, "there is no folder no"),
        ("prompt", ["--prompt", "x", "-o", "e.st", "--clas", "3"], 2, "--clas"),
        ("class", ["--prompt", "x", "-o", "e.st"], 2, "is drawn by class and reads no prompt"),
        ("embeds", ["--prompt", "x", "-o", "e.st"], 2, "fake has no text encoders"),
    ],
)  # fmt: skip
def test_embedding_that_makes_no_sense(
    command: Command, bundles: dict[str, Path], bundle: str, args: list[Any], code: int, says: str
) -> None:
    check(command, code, says, "embed", bundles[bundle], *args)


def test_a_prompt_that_is_cut_is_said(
    command: Command, forked_bundle: Path, pipeline: intaglio.Pipeline
) -> None:
    def note(name: str, encoder: str) -> str:
        return f"the {name} has more tokens than {encoder} reads ({MAX_LENGTH}): its end is ignored"

    def without_words(notes: Iterable[str]) -> list[str]:
        parts = [note.partition(', "') for note in notes]
        assert all(LONG.endswith(words.rstrip('"') + " ") for _, _, words in parts)
        return [before for before, _, _ in parts]

    encoders = ("text_encoder", "text_encoder_2")
    expected = [note("prompt", encoder) for encoder in encoders]
    lines = [f"intaglio: note: {line}" for line in expected]
    done = command("generate", forked_bundle, "--prompt", LONG, "--cfg-scale", 1, "--steps", 1)
    assert (done.returncode, without_words(done.stderr.splitlines())) == (0, lines)
    done = command("embed", forked_bundle, "--prompt", LONG, "-o", "e.st")
    assert (done.returncode, without_words(done.stderr.splitlines())) == (0, lines)
    with pytest.warns(UserWarning, match="has more tokens") as warned:
        pipeline.generate(LONG, steps=1, cfg_scale=1.0)
    assert without_words(str(w.message) for w in warned) == expected
    assert {w.filename for w in warned} == {__file__}
    with pytest.warns(UserWarning, match="has more tokens") as warned:
        embeds = pipeline.embed(PROMPT, LONG)
    negative = [note("negative prompt", encoder) for encoder in encoders]
    assert without_words(str(w.message) for w in warned) == negative
    assert len(embeds.notes) == 2


def test_inspect_and_bench(command: Command, bundles: dict[str, Path]) -> None:
    for name in ("class", "embeds"):
        shown = json.loads(command("inspect", bundles[name], "--json").stdout)
        people = command("inspect", bundles[name]).stdout
        assert shown["prediction_type"] == "velocity"
        assert shown["max_abs"] == [1.0, 2.0, 300.0, 4.0]
        assert "velocity" in people
        assert "max_abs" not in people
        if name == "class":
            assert shown["classes"] == {"count": 10, "null": 10}
            assert shown["only_image"] == [2 * SIZE, SIZE]
        else:
            assert shown["text_encoders"] == {}
            assert shown["defaults"]["distilled_guidance"] == GUIDANCE
            assert shown["packed_latents"]
        done = command("bench", bundles[name], "--steps", 1, "--repeats", 1, "--json")
        assert done.returncode == 0, done.stderr
        modes = {row["mode"]: row["forked_rows"] for row in json.loads(done.stdout)["modes"]}
        assert modes == {"baseline": 1, "cfg": 2, "dg": 2, "cfg+dg": 3}
    shown = json.loads(command("inspect", bundles["prompt"], "--json").stdout)
    assert shown["text_encoders"] == {"text_encoder": MAX_LENGTH, "text_encoder_2": MAX_LENGTH}


def test_embeddings_from_python(bundles: dict[str, Path]) -> None:
    pipeline = intaglio.Pipeline.open(bundles["embeds"])
    with pytest.raises(intaglio.UsageError, match="takes PromptEmbeddings or the path"):
        pipeline.generate(prompt_embeds=3)  # type: ignore[arg-type]
    for name, array in EMBEDS.items():
        with pytest.raises(intaglio.InputError, match=f"^{name} must be float32, not int64"):
            intaglio.PromptEmbeds(**EMBEDS | {name: array.astype(np.int64)})
    for part in ("pooled_prompt_embeds", "prompt_attention_mask"):
        with pytest.raises(intaglio.InputError, match="without negative_prompt_embeds"):
            intaglio.PromptEmbeds(EMBEDS["prompt_embeds"], **{f"negative_{part}": MASK})
    embeds = intaglio.PromptEmbeds(EMBEDS["prompt_embeds"])
    assert embeds.prompt_embeds is not None
    assert embeds.negative_prompt_embeds is None


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_of_every_type(tmp_path: Path, dtype: torch.dtype) -> None:
    """Given in memory, or in a file under the name that diffusers has for Qwen-Image's."""
    text, mask = torch.ones(1, 4, TEXT_WIDTH), torch.from_numpy(MASK).to(dtype)
    given = [intaglio.PromptEmbeds(text, prompt_attention_mask=m) for m in (mask, mask.numpy())]
    given[0].save(tmp_path / "ours.safetensors")
    tensors = {"prompt_embeds": text, "prompt_embeds_mask": mask}
    tensors |= {f"negative_{name}": tensor.clone() for name, tensor in tensors.items()}
    save_torch(tensors, tmp_path / "qwen.safetensors")
    loaded = [intaglio.PromptEmbeds.load(tmp_path / f"{n}.safetensors") for n in ("ours", "qwen")]
    masks = [embeds.prompt_attention_mask for embeds in given + loaded]
    for shown in [*masks, loaded[1].negative_prompt_attention_mask]:
        assert shown.dtype == np.float32
        np.testing.assert_array_equal(shown, MASK)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64])
def test_masks_of_other_types(dtype: type) -> None:
    with pytest.raises(intaglio.InputError, match="float32"):
        intaglio.PromptEmbeds(EMBEDS["prompt_embeds"], prompt_attention_mask=MASK.astype(dtype))


@pytest.mark.parametrize("marks", [[1, 1, 0.5, 0], [1, 1, 2, 0], [-1, 1, 1, 1], [0, 0, 0, 0]])
@pytest.mark.parametrize("wrong", ["", "negative_"])
def test_masks_that_make_no_sense(
    command: Command, bundles: dict[str, Path], marks: list[float], wrong: str
) -> None:
    tensors = {
        f"{prefix}{name}": array
        for prefix in ("", "negative_")
        for name, array in (
            ("prompt_embeds", EMBEDS["prompt_embeds"]),
            ("prompt_embeds_mask", MASK),
        )
    }
    path = command.folder / "e.safetensors"
    save_file(tensors, path)
    args = ("generate", bundles["mask"], "--prompt-embeds", path)
    assert command(*args, "--steps", 1, "-o", "a.png").returncode == 0
    save_file(tensors | {f"{wrong}prompt_embeds_mask": np.array([marks], np.float32)}, path)
    check(command, 3, f"{wrong}prompt_attention_mask must hold 1 for tokens and 0", *args)
    save_file(tensors | {f"{wrong}prompt_attention_mask": MASK}, path)
    check(command, 3, "which are one: leave one out", *args)


def test_axes_that_contradict_the_role(command: Command, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "text")
    manifest = json.loads((bundle / "bundle.json").read_text())
    inputs = manifest["transformer"]["graphs"]["forked"]["inputs"]
    (text,) = (tensor for tensor in inputs if tensor["role"] == "text")
    text["axes"] = []
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    check(command, 3, "axes must be 3 for an input of role text", "bench", bundle, "--steps", 1)


def test_a_file_of_absurd_shapes(tmp_path: Path) -> None:
    for shape in ([1] * 100_000, [0, 2**62, 2**62]):
        end = 0 if 0 in shape else 4
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
        header = json.dumps({"prompt_embeds": entry}).encode()
        path = tmp_path / "e.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * end)
        with pytest.raises(intaglio.InputError, match="more than 8 axes or more than 2\\^31"):
            intaglio.PromptEmbeds.load(path)

"""The training program, end to end for a few steps, and its evaluation against diffusers."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from intaglio.torch_reference.model import Model
from intaglio_export.adapters import SD3Adapter
from models.training import classifier, data, evaluate, flow, state, text, train, vae
from tests.parity.three_branch_loop import Prompt
from tests.training.conftest import load, tiny_arguments

pytestmark = pytest.mark.exports


def embed(pipeline: StableDiffusion3Pipeline, prompts: list[str]) -> list[Prompt]:
    """Conditional and null prompt as the pipeline itself encodes them."""
    words, null_words, pooled, null_pooled = pipeline.encode_prompt(
        prompts, None, None, max_sequence_length=text.MAX_SEQUENCE_LENGTH
    )
    return [Prompt(words, pooled), Prompt(null_words, null_pooled)]


def noise(n: int) -> torch.Tensor:
    return torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def curve_steps(work: Path) -> list[int]:
    with (work / "curve.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_script_resumes_where_it_stopped(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    base = tmp_path / "again"
    shutil.copytree(tiny[0].parent, base)
    assert curve_steps(base / "work") == [1, 2, 3, 4]
    encoders = (base / "work/encoders/done").stat().st_mtime_ns
    assert train.main(tiny_arguments(base, steps=7)) == 0
    assert curve_steps(base / "work") == [1, 2, 3, 4, 5, 6, 7]
    newest = state.checkpoints(base / "work")[0]
    assert torch.load(newest, weights_only=True)["step"] == 7
    assert (base / "work/encoders/done").stat().st_mtime_ns == encoders


def test_resumed_run_is_the_uninterrupted_run(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    options = ["--work", str(tmp_path), "--steps", "6", "--batch", "4", "--width", "64"]
    args = train.parse([*options, "--blocks", "2"])
    cache = train.prepare(train.parse(["--work", str(tiny[1]), "--limit", "100"]))
    assert cache is not None
    whole = train.Run(args)
    losses = [whole.advance(cache) for _ in range(4)]
    first = train.Run(args)
    parts = [first.advance(cache), first.advance(cache)]
    first.save()
    second = train.Run(args)
    assert second.step == 2
    parts += [second.advance(cache), second.advance(cache)]
    assert parts == pytest.approx(losses, rel=1e-4)
    assert len(set(losses)) == 4
    for a, b in zip(whole.ema, second.ema, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_folder_makes_an_image(tiny: tuple[Path, Path]) -> None:
    made = load(tiny[0])
    assert made.text_encoder_3 is None
    assert made.tokenizer_3 is None
    assert made.vae_scale_factor == 2
    assert made.tokenizer_max_length == text.MAX_LENGTH
    for height, width in ((32, 32), (64, 48)):
        image = made(
            "a dark ankle boot",
            height=height,
            width=width,
            num_inference_steps=2,
            max_sequence_length=text.MAX_SEQUENCE_LENGTH,
        ).images[0]
        assert image.size == (width, height)
        assert image.mode == "RGB"


def test_missing_data_names_the_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*tiny_arguments(tmp_path, steps=1), "--data", str(tmp_path)]) == 3
    message = capsys.readouterr().err
    assert "dataset-fashion-mnist" in message
    assert message.count("\n") == 1


def test_any_text_can_be_encoded() -> None:
    first, second = text.build_tokenizers(data.all_captions())
    for prompt in ("a dark ankle boot", "Zürich 靴 👢", "\x00\u200d", "naïve café"):
        ids = first(prompt).input_ids
        assert ids == second(prompt).input_ids
        assert first.eos_token_id not in ids[1:-1], prompt
    whole_words = first.tokenize(max(data.all_captions(), key=len))
    assert all(token.endswith("</w>") for token in whole_words)
    assert max(len(first(c).input_ids) for c in data.all_captions()) <= text.MAX_LENGTH


def test_captions_are_indexed_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, attrs = torch.arange(10).repeat(200), torch.tensor([1, 1, 2]).repeat(2000, 1)
    index = data.caption_index(labels, attrs, 0.12, generator)
    captions = data.all_captions()
    drawn = [captions[i] for i in index]
    assert 0.09 < drawn.count("") / len(drawn) < 0.15
    for label, words in zip(labels.tolist(), drawn, strict=True):
        assert not words or words.endswith(data.NAMES[label])
        assert "light" not in words
        assert "wide" not in words
    assert "a dark patterned narrow dress" in drawn
    assert "an ankle boot" in drawn


def test_embeddings_are_the_pipelines_own(tiny: tuple[Path, Path]) -> None:
    made = load(tiny[0])
    prompts = ["a dark ankle boot", ""]
    theirs = embed(made, prompts)[0]
    words, pooled = text.encode(
        [made.tokenizer, made.tokenizer_2], [made.text_encoder, made.text_encoder_2], prompts
    )
    torch.testing.assert_close(words, theirs.words)
    torch.testing.assert_close(pooled, theirs.pooled)


def test_one_zero_row_stands_for_all(pipeline: StableDiffusion3Pipeline) -> None:
    cond = embed(pipeline, ["a dress", "a dark bag"])[0]
    arguments = {"hidden_states": noise(2), "pooled_projections": cond.pooled}
    arguments |= {"timestep": torch.tensor([300.0, 800.0]), "return_dict": False}
    model = pipeline.transformer
    plain = model(encoder_hidden_states=cond.words, **arguments)[0]
    short = cond.words[:, : text.MAX_LENGTH + 1]
    model.set_attn_processor(flow.RepeatedRowAttention(text.MAX_SEQUENCE_LENGTH))
    assert relative(model(encoder_hidden_states=short, **arguments)[0], plain) < 1e-5
    model.set_attn_processor(flow.RepeatedRowAttention(1))
    assert relative(model(encoder_hidden_states=short, **arguments)[0], plain) > 1e-4


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_evaluation_draws_what_the_pipeline_draws(
    pipeline: StableDiffusion3Pipeline, guidance: float
) -> None:
    """The same noise, prompts and guidance scale in diffusers' own loop."""
    labels = torch.tensor([3, 8, 3])
    generator = torch.Generator().manual_seed(7)
    start = torch.randn(3, 4, 16, 16, generator=generator)
    tones = (torch.randint(4, (3,), generator=generator) - 1).clamp(min=0)
    prompts = [data.caption(c, t) for c, t in zip(labels.tolist(), tones.tolist(), strict=True)]
    theirs = pipeline(
        prompts,
        latents=start,
        height=32,
        width=32,
        num_inference_steps=6,
        guidance_scale=guidance,
        max_sequence_length=text.MAX_SEQUENCE_LENGTH,
        output_type="latent",
    ).images
    pipeline.transformer.set_attn_processor(flow.RepeatedRowAttention(text.MAX_SEQUENCE_LENGTH))
    model = Model(SD3Adapter(pipeline), evaluate.CAPTIONS, text.MAX_SEQUENCE_LENGTH)
    model.shorten(text.MAX_LENGTH + 1)
    bench = evaluate.Bench(model, classifier.Classifier().eval(), 0.1, torch.zeros(1))
    ours = bench.generate(labels, 7, steps=6, cfg_scale=guidance, batch=2)
    assert relative(ours, vae.decode_latents(pipeline.vae, theirs)) <= 1e-4
    assert len(set(tones.tolist())) > 1


def test_activations_are_those_of_the_blocks(pipeline: StableDiffusion3Pipeline) -> None:
    """Ratios and agreement from torch's own hooks on diffusers' own unguided run."""
    model = Model(SD3Adapter(pipeline), evaluate.CAPTIONS, text.MAX_SEQUENCE_LENGTH)
    bench = evaluate.Bench(model, classifier.Classifier().eval(), 0.1, torch.zeros(1))
    found = evaluate.activations(bench, n=4, steps=2, seed=3)
    seen: list[torch.Tensor] = []
    blocks = pipeline.transformer.transformer_blocks
    for block in blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out[1].abs()))
    pipeline(
        [data.caption(label) for label in range(4)],
        latents=torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(3)),
        height=32,
        width=32,
        num_inference_steps=2,
        guidance_scale=1.0,
        max_sequence_length=text.MAX_SEQUENCE_LENGTH,
        output_type="latent",
    )
    assert len(seen) == len(found["cells"]) == 2 * len(blocks)
    for i, (cell, size) in enumerate(zip(found["cells"], seen, strict=True)):
        assert (cell["step"], cell["block"]) == divmod(i, len(blocks))
        mean = size.mean((0, 1))
        assert cell["ratios"][0] == pytest.approx((mean.max() / mean.median()).item(), abs=0.01)
        assert cell["channels"][0] == mean.argmax()
        top = size[..., mean.argmax()]
        agreement = (top > 2 * size.median(-1).values).float().mean().item()
        assert cell["agreement"] == pytest.approx(agreement, abs=0.01)


def test_frechet_distance_of_known_gaussians() -> None:
    import numpy as np

    a = (np.zeros(3), np.eye(3))
    b = (np.array([1.0, 0.0, 2.0]), np.diag([4.0, 1.0, 9.0]))
    # Distance of the means 5, and (sqrt(a) - sqrt(b))^2 on each axis: 1 + 0 + 4.
    assert evaluate.frechet(a, b) == pytest.approx(10.0)
    assert evaluate.frechet(b, b) == pytest.approx(0.0, abs=1e-9)

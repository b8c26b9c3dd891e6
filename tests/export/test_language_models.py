"""Language models as text encoders: their graphs equal transformers' own hidden states."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import Flux2Pipeline
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MistralModel,
    PixtralVisionConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

import intaglio
from intaglio_export.adapters.layouts import EncoderLayout, PromptLayout
from intaglio_export.adapters.pixart_sigma import PixArtSigmaAdapter
from intaglio_export.bundle.writing import Stage, write_stages
from intaglio_export.errors import ExportError
from intaglio_export.exporter import export_bundle
from intaglio_export.networks.encoders import text_encoder_unit
from intaglio_export.options import ExportRequest
from intaglio_export.precision import store_weights_in
from intaglio_export.sources import pipeline_folder
from tests.byte_level import mistral_like, qwen_like
from tests.families import FAMILIES

LENGTH, VOCABULARY, WIDTH, LAYERS = 24, 300, 40, 5
# Heads are not hidden_size / heads wide, and fewer of them are keys.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 72,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
}


def qwen3() -> PreTrainedModel:
    return Qwen3Model(Qwen3Config(**SIZES))


def qwen3_with_head() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES))


def mistral() -> PreTrainedModel:
    return MistralModel(MistralConfig(**SIZES, sliding_window=None))


def qwen2_5_vl() -> PreTrainedModel:
    text = SIZES | {
        "hidden_size": 48,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [1, 1, 2],
            "rope_theta": 10000.0,
        },
    }
    del text["head_dim"], text["rope_theta"]
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 48,
              "intermediate_size": 24}  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


def qwen3_vl() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    text = SIZES | {"rope_parameters": rope}
    del text["rope_theta"]
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
              "intermediate_size": 24, "deepstack_visual_indexes": [0]}  # fmt: skip
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision))


def mistral3(vocabulary: int) -> PreTrainedModel:
    text = MistralConfig(**SIZES | {"vocab_size": vocabulary}, sliding_window=None)
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))


def made(make: Callable[[], PreTrainedModel]) -> Any:
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)  # norms are all ones otherwise
            else:
                parameter.mul_(4.0)
    return model


def exported(model: Any, folder: Path, dtype: torch.dtype, **options: Any) -> Path:
    layout = EncoderLayout("tokenizer", LENGTH, ("hidden",), masked=True, **options)
    model = copy.deepcopy(model)
    store_weights_in(model, dtype)
    unit = text_encoder_unit(model, "text_encoder", layout, dtype)
    write_stages([Stage(model, [unit])], folder, lambda what, done: None)
    return folder / (unit.spec.cpu or unit.spec.path)


def prompts(gap: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of different lengths; the last one fills all positions.

    With `gap`, the last prompt has padding inside, which what follows must not see. No token sees
    the padding after a prompt anyway.
    """
    ids = torch.randint(VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(LENGTH)[None] < torch.tensor([[1], [9], [LENGTH]])
    if gap:
        mask[2, 5:8] = False
    return ids, mask


def gap_in(model: Any) -> bool:
    """Whether positions are counted without regard to padding; those of Qwen's VL are not."""
    with_images = (Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration)
    return not isinstance(model, with_images)


@torch.no_grad()
def expected(model: Any, taps: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    ids, mask = prompts(gap_in(model))
    states = model(ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    return torch.cat([states[tap] for tap in taps], dim=-1).numpy()


def error(file: Path, reference: np.ndarray[Any, Any], gap: bool = True) -> float:
    ids, mask = prompts(gap)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feeds = {"token_ids": ids.numpy(), "text_mask": mask.float().numpy()}
    (got,) = session.run(["hidden"], feeds)
    assert got.shape == reference.shape
    used = mask.numpy()  # the rest is padding, which nobody reads
    return float(np.linalg.norm((got - reference)[used]) / np.linalg.norm(reference[used]))


@pytest.mark.parametrize(
    ("make", "taps"),
    [
        (qwen3_with_head, (1, 2, 4)),  # several, as FLUX.2 klein takes them
        (mistral, (-2,)),  # one before the last, as Z-Image takes it
        (qwen2_5_vl, (-1,)),  # the last, which is normalized, as Qwen-Image takes it
        (qwen3_vl, (1, 3)),  # as Krea 2 takes twelve
    ],
)
def test_hidden_states_are_transformers(
    make: Callable[[], PreTrainedModel], taps: tuple[int, ...], tmp_path: Path
) -> None:
    model = made(make)
    reference = expected(model, taps)
    file = exported(model, tmp_path, torch.float32, taps=taps)
    assert error(file, reference, gap_in(model)) < 1e-5
    others = expected(model, tuple(tap - 1 for tap in taps))
    assert np.linalg.norm(others - reference) > 0.1 * np.linalg.norm(reference)
    decoder = model.get_decoder()
    last = max(tap % (LAYERS + 1) for tap in taps)
    used = (decoder.embed_tokens, decoder.norm, *decoder.layers[:last])
    most = sum(p.numel() for part in used for p in part.parameters())
    weights = onnx.load(file, load_external_data=False).graph.initializer
    # Later layers and the head are left out; a layer has 19,000 weights.
    assert sum(math.prod(tensor.dims) for tensor in weights) < most + 5000


@torch.no_grad()
def test_text_alone_has_plain_positions() -> None:
    """Qwen3-VL's positions have three parts, which are equal without images."""
    model = made(qwen3_vl)
    plain = Qwen3Model(Qwen3Config(**SIZES)).eval()
    plain.load_state_dict(model.get_decoder().state_dict())
    ids, mask = prompts(gap=False)
    states = (m(ids, attention_mask=mask, output_hidden_states=True) for m in (model, plain))
    ours, theirs = (found.hidden_states[3][mask] for found in states)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_padding_before_a_prompt(tmp_path: Path) -> None:
    """Mistral 3 as FLUX.2-dev takes it, which also reads the padding's hidden states."""
    tokenizer = mistral_like()
    tokenizer.padding_side = "left"
    tokenizer.chat_template = (
        "{% for message in messages %}[INST]{{ message.content[0].text }}[/INST]{% endfor %}"
    )
    model = made(lambda: mistral3(len(tokenizer)))
    seen: list[dict[str, torch.Tensor]] = []
    model.register_forward_pre_hook(lambda m, args, given: seen.append(given), with_kwargs=True)
    taps = (1, 2, 4)
    with torch.no_grad():
        reference = Flux2Pipeline._get_mistral_3_small_prompt_embeds(
            model,
            tokenizer,
            ["a boot", "the dark boot"],
            max_sequence_length=LENGTH,
            system_message="a",
            hidden_states_layers=list(taps),
        )
    ids, mask = seen[0]["input_ids"], seen[0]["attention_mask"]
    assert (mask[:, 0] == 0).all()
    assert (mask[:, -1] == 1).all()
    session = onnxruntime.InferenceSession(
        exported(model, tmp_path, torch.float32, taps=taps), providers=["CPUExecutionProvider"]
    )
    feeds = {"token_ids": ids.numpy(), "text_mask": mask.float().numpy()}
    (got,) = session.run(["hidden"], feeds)
    np.testing.assert_allclose(got, reference.numpy(), rtol=1e-3, atol=1e-4)


def test_low_precision(tmp_path: Path) -> None:
    model = made(qwen3)
    reference = expected(model, (2, 4))
    assert 1e-4 < error(exported(model, tmp_path, torch.bfloat16, taps=(2, 4)), reference) < 5e-2


def test_a_decoder_with_too_few_layers(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has 5 layers, but the model takes the hidden states"):
        exported(made(qwen3), tmp_path, torch.float32, taps=(9, 18, 27))


def test_a_prompt_from_its_text_to_hidden_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PixArt's pipeline, which takes hidden states as they come, with Qwen3 in the place of T5."""
    tokenizer = qwen_like()
    pipeline = FAMILIES["pixart-sigma"].make()
    width = pipeline.text_encoder.config.hidden_size
    sizes = SIZES | {"vocab_size": len(tokenizer), "hidden_size": width, "head_dim": 8}
    encoder = made(lambda: Qwen3Model(Qwen3Config(**sizes)))
    pipeline.register_modules(tokenizer=tokenizer, text_encoder=encoder)
    pipeline.save_pretrained(tmp_path / "source")

    def prompt(self: PixArtSigmaAdapter, length: int) -> PromptLayout:
        layout = EncoderLayout("tokenizer", length, ("hidden",), masked=True, taps=(LAYERS,))
        return replace(whole(self, length), encoders={"text_encoder": layout})

    whole = PixArtSigmaAdapter.prompt
    monkeypatch.setattr(PixArtSigmaAdapter, "prompt", prompt)
    monkeypatch.setattr(pipeline_folder, "check_class", lambda *args: None)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"block": 1, "max_sequence_length": LENGTH}))
    export_bundle(ExportRequest(tmp_path / "source", tmp_path / "bundle", settings=settings))
    opened = intaglio.Pipeline.open(tmp_path / "bundle", threads=1)
    for text in ("a dark boot", "don't\n  caf\u0065\u0301 <|im_end|> 1990s", "", "x y " * 40):
        got = opened.embed(text)
        states, mask, _, _ = pipeline.encode_prompt(
            text, do_classifier_free_guidance=False, max_sequence_length=LENGTH
        )
        assert np.array_equal(got.prompt_attention_mask, mask.numpy())
        difference = got.prompt_embeds - states.detach().numpy()
        assert np.linalg.norm(difference) < 1e-5 * np.linalg.norm(got.prompt_embeds)


@pytest.mark.parametrize("family", ["z-image", "flux2-klein"])
def test_a_missing_chat_template_is_named(tmp_path: Path, family: str) -> None:
    """It is missing from the tokenizer, so no other part of the model is blamed."""
    made = FAMILIES[family]
    pipeline = made.make()
    pipeline.tokenizer.chat_template = None
    pipeline.save_pretrained(tmp_path / "source")
    length = made.call["max_sequence_length"]
    size = {"height": 32, "width": made.width, "max_sequence_length": length}
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(size))
    request = ExportRequest(tmp_path / "source", tmp_path / "bundle", settings=settings)
    with pytest.raises(ExportError, match=r"^The tokenizer .* has no chat template") as raised:
        export_bundle(request)
    assert "download chat_template.jinja or tokenizer_config.json" in raised.value.message

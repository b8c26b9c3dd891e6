"""FLUX.2, small and random: klein base, klein distilled, and dev."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.byte_level import INSTRUCT, mistral_like, qwen_like

PLANTED = 7
TIME = 6.0
SHIFT = 0.05
TEXT, MASSIVE = 20.0, 6.5
LAYERS = 28  # the pipeline takes hidden states up to layer 27


TEXT_WIDTH = 48


def make_transformer(guidance: bool) -> Flux2Transformer2DModel:
    """Two double and two single blocks of 60 channels, and RoPE axes of four sizes."""
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=20,
        num_attention_heads=3,
        joint_attention_dim=TEXT_WIDTH,
        timestep_guidance_channels=24,
        mlp_ratio=2.0,
        axes_dims_rope=(2, 8, 6, 4),
        guidance_embeds=guidance,
    ).eval()
    with torch.no_grad():
        transformer.time_guidance_embed.timestep_embedder.linear_2.weight *= TIME
        # No layer has a bias. The mean of SiLU is positive, so these shifts and this gate are for
        # all timesteps, and attention with equal weights adds the same to all tokens.
        width = transformer.inner_dim
        modulation = transformer.double_stream_modulation_img.linear.weight
        modulation[:width] += SHIFT
        modulation[2 * width + PLANTED] = SHIFT
        for name, weight in transformer.named_parameters():
            if ".norm_" in name:  # equal weights would become one in the graph
                weight.normal_(1.0, 0.1)
        for block in transformer.transformer_blocks:
            block.attn.to_out[0].weight *= TEXT  # or the prompt would hardly show
        first = transformer.transformer_blocks[0].attn
        first.norm_q.weight *= 0.01
        first.to_out[0].weight[PLANTED] = MASSIVE * first.to_v.weight.sum(1)
    return transformer


def make_pipeline(distilled: bool) -> Flux2KleinPipeline:
    torch.manual_seed(0)
    tokenizer = qwen_like()
    return Flux2KleinPipeline(
        transformer=make_transformer(guidance=False),
        scheduler=make_scheduler(),
        vae=make_vae(),
        text_encoder=make_qwen3(tokenizer),
        tokenizer=tokenizer,
        is_distilled=distilled,
    )


def make_dev() -> Flux2Pipeline:
    """Distilled guidance, and prompts that Mistral 3 encodes.

    The tokenizer stands in for its processor, which needs torchvision.
    """
    torch.manual_seed(0)
    special = ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]"]
    tokenizer = mistral_like(special, INSTRUCT, padding_side="left")
    return Flux2Pipeline(
        transformer=make_transformer(guidance=True),
        scheduler=make_scheduler(),
        vae=make_vae(),
        text_encoder=make_mistral3(tokenizer),
        tokenizer=tokenizer,
    )


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
    )


def make_qwen3(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """`LAYERS` layers of a third of TEXT_WIDTH channels, four heads of which two share a key."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH // 3,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config).eval()


def make_mistral3(tokenizer: PreTrainedTokenizerFast) -> Mistral3ForConditionalGeneration:
    """A layer more than the pipeline takes, heads wider than their share, and a small eye."""
    text = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH // 3,
        intermediate_size=24,
        num_hidden_layers=31,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        sliding_window=None,
        pad_token_id=None,  # or the hidden states of padding would be zeros
    )
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    config = Mistral3Config(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    return Mistral3ForConditionalGeneration(config).eval()


def make_vae() -> AutoencoderKLFlux2:
    """Four channels of 2 x 2 cells, each with its own mean and variance; two pixels a cell."""
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 12),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    ).eval()
    with torch.no_grad():
        vae.bn.running_mean.copy_(torch.linspace(-0.4, 0.5, 16))
        vae.bn.running_var.copy_(torch.linspace(0.3, 2.0, 16))
    return vae


def make_base() -> Flux2KleinPipeline:
    return make_pipeline(distilled=False)


def make_distilled() -> Flux2KleinPipeline:
    return make_pipeline(distilled=True)

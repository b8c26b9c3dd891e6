"""The transformer, the rectified-flow loss, and a faster attention for training."""

from __future__ import annotations

import math

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import nn
from torch.nn import functional

from . import text

LATENT_SIZE = 16


def build_transformer(
    width: int = 160, blocks: int = 8, head_dim: int = 32, latent_channels: int = 4
) -> SD3Transformer2DModel:
    """Build an SD3 transformer with AdaLN and output at zero, so blocks start as the identity.

    It has no QK norm.
    """
    model = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=blocks,
        attention_head_dim=head_dim,
        num_attention_heads=width // head_dim,
        joint_attention_dim=text.JOINT_DIM,
        caption_projection_dim=width,
        pooled_projection_dim=text.POOLED_DIM,
        pos_embed_max_size=32,
    )
    zeroed = [model.norm_out.linear, model.proj_out]
    for block in model.transformer_blocks:
        zeroed += [block.norm1.linear, block.norm1_context.linear]
    for layer in zeroed:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Build a flow-matching scheduler without a shift, which 64 image tokens do not need."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


class RepeatedRowAttention:
    """SD3's joint attention for text whose last row stands for `repeat` equal rows.

    An SD3 pipeline without T5 appends zero rows to the prompt. Text has no positions inside the
    transformer, so these rows stay equal in every block. One of them, with log(repeat) added to its
    attention logits, computes the same function for less work. At this size plain matmuls are also
    twice as fast as the CPU's fused attention in bfloat16.
    """

    def __init__(self, repeat: int) -> None:
        self.repeat = repeat

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image [B, T, C] and text [B, S, C] after attention, before the residual gate."""
        tokens = hidden_states.shape[1]
        streams = (
            (attn.to_q, attn.add_q_proj),
            (attn.to_k, attn.add_k_proj),
            (attn.to_v, attn.add_v_proj),
        )
        query, key, value = (
            torch.cat([image(hidden_states), words(encoder_hidden_states)], dim=1)
            .unflatten(-1, (attn.heads, -1))
            .transpose(1, 2)
            for image, words in streams
        )
        scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
        bias = torch.zeros(key.shape[2], dtype=scores.dtype, device=scores.device)
        bias[-1] = math.log(self.repeat)
        weights = torch.softmax(scores + bias, dim=-1).to(value.dtype)
        mixed = torch.matmul(weights, value).transpose(1, 2).flatten(2)
        image, words = mixed[:, :tokens], mixed[:, tokens:]
        image = attn.to_out[1](attn.to_out[0](image))
        return image, words if attn.context_pre_only else attn.to_add_out(words)


def flow_loss(
    model: SD3Transformer2DModel,
    latents: torch.Tensor,
    words: torch.Tensor,
    pooled: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the rectified-flow loss (arXiv 2403.03206) at logit-normal times.

    `latents` are [B, C, 16, 16]; `words` [B, S, JOINT_DIM] and `pooled` [B, POOLED_DIM] are the
    prompt embeddings. `generator` is on the CPU, so the noise does not depend on the device.
    """
    n = len(latents)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    sigma = torch.sigmoid(torch.randn(n, generator=generator)).to(latents.device)
    mix = sigma.view(-1, 1, 1, 1)
    predicted = model(
        hidden_states=(1.0 - mix) * latents + mix * noise,
        encoder_hidden_states=words,
        pooled_projections=pooled,
        timestep=sigma * 1000.0,
        return_dict=False,
    )[0]
    return functional.mse_loss(predicted.float(), noise - latents)

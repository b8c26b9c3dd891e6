"""The original formats of checkpoints, from diffusers' models: its converters backwards."""

from __future__ import annotations

import re
from typing import Any

import torch

State = dict[str, torch.Tensor]

_SD3_NORM = r"transformer_blocks\.(\d+)\.(attn2?)\.norm_(added_)?([qk])\.weight"
_MLPS = {"timestep_embedder": "t_embedder", "text_embedder": "y_embedder"}


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    """diffusers has (scale, shift) where the original has (shift, scale)."""
    return torch.cat(tensor.chunk(2, dim=0)[::-1])


def sd3_transformer(state: State) -> State:
    """`SD3Transformer2DModel` as Stability's checkpoints name it."""
    made: State = {"pos_embed": state["pos_embed.pos_embed"]}
    blocks = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("transformer_blocks."))
    for kind in ("weight", "bias"):
        made[f"x_embedder.proj.{kind}"] = state[f"pos_embed.proj.{kind}"]
        made[f"context_embedder.{kind}"] = state[f"context_embedder.{kind}"]
        for ours, theirs in _MLPS.items():
            for one, other in (("linear_1", "0"), ("linear_2", "2")):
                made[f"{theirs}.mlp.{other}.{kind}"] = state[f"time_text_embed.{ours}.{one}.{kind}"]
        made[f"final_layer.linear.{kind}"] = state[f"proj_out.{kind}"]
        made[f"final_layer.adaLN_modulation.1.{kind}"] = _swapped(state[f"norm_out.linear.{kind}"])
        for i in range(blocks):
            ours, theirs = f"transformer_blocks.{i}.", f"joint_blocks.{i}."
            block = {k.removeprefix(ours): v for k, v in state.items() if k.startswith(ours)}
            for k, v in _sd3_block(block, kind, last=i == blocks - 1).items():
                made[theirs + k] = v
    for name in state:
        if match := re.fullmatch(_SD3_NORM, name):
            block, attention, added, half = match.groups()
            side = "context_block" if added else "x_block"
            made[f"joint_blocks.{block}.{side}.{attention}.ln_{half}.weight"] = state[name]
    return made


def _sd3_block(block: State, kind: str, last: bool) -> State:
    made: State = {}
    for attention in ("attn", "attn2"):
        if f"{attention}.to_q.{kind}" in block:
            parts = [block[f"{attention}.to_{part}.{kind}"] for part in "qkv"]
            made[f"x_block.{attention}.qkv.{kind}"] = torch.cat(parts)
            made[f"x_block.{attention}.proj.{kind}"] = block[f"{attention}.to_out.0.{kind}"]
    made[f"context_block.attn.qkv.{kind}"] = torch.cat(
        [block[f"attn.add_{part}_proj.{kind}"] for part in "qkv"]
    )
    modulation = block[f"norm1_context.linear.{kind}"]
    made[f"context_block.adaLN_modulation.1.{kind}"] = _swapped(modulation) if last else modulation
    renamed = {
        "x_block.adaLN_modulation.1": "norm1.linear",
        "x_block.mlp.fc1": "ff.net.0.proj",
        "x_block.mlp.fc2": "ff.net.2",
        "context_block.attn.proj": "attn.to_add_out",
        "context_block.mlp.fc1": "ff_context.net.0.proj",
        "context_block.mlp.fc2": "ff_context.net.2",
    }
    for theirs, ours in renamed.items():
        if f"{ours}.{kind}" in block:
            made[f"{theirs}.{kind}"] = block[f"{ours}.{kind}"]
    return made


def flux_transformer(state: State) -> State:
    """`FluxTransformer2DModel` as Black Forest Labs' checkpoints name it, or Chroma's."""
    made: State = {}
    blocks: dict[str, State] = {}
    for name, tensor in state.items():
        if match := re.match(r"((?:single_)?)transformer_blocks\.(\d+)\.", name):
            place = f"{match[1] or 'double_'}blocks.{match[2]}."
            blocks.setdefault(place, {})[name[match.end() :]] = tensor
        else:
            new = re.sub(r"time_text_embed\.timestep_embedder", "time_in", name)
            new = re.sub(r"time_text_embed\.text_embedder", "vector_in", new)
            new = re.sub(r"time_text_embed\.guidance_embedder", "guidance_in", new)
            new = new.replace("linear_1", "in_layer").replace("linear_2", "out_layer")
            new = re.sub(r"^context_embedder", "txt_in", new).replace("x_embedder", "img_in")
            new = re.sub(r"^proj_out", "final_layer.linear", new)
            if new.startswith("distilled_guidance_layer.norms"):
                new = new.replace("weight", "scale")
            swapped = new.startswith("norm_out")
            new = new.replace("norm_out.linear", "final_layer.adaLN_modulation.1")
            made[new] = _swapped(tensor) if swapped else tensor
    for place, block in blocks.items():
        convert = _flux_single if place.startswith("single") else _flux_double
        made |= {place + name: tensor for name, tensor in convert(block).items()}
    return made


def _flux_double(block: State) -> State:
    made: State = {}
    for side, norm, ff, qkv, out, added in (
        ("img", "norm1", "ff", "to_{}", "to_out.0", ""),
        ("txt", "norm1_context", "ff_context", "add_{}_proj", "to_add_out", "added_"),
    ):
        for kind in ("weight", "bias"):
            parts = [block[f"attn.{qkv.format(part)}.{kind}"] for part in "qkv"]
            made[f"{side}_attn.qkv.{kind}"] = torch.cat(parts)
            made[f"{side}_attn.proj.{kind}"] = block[f"attn.{out}.{kind}"]
            if f"{norm}.linear.{kind}" in block:  # Chroma has one network for all of them
                made[f"{side}_mod.lin.{kind}"] = block[f"{norm}.linear.{kind}"]
            made[f"{side}_mlp.0.{kind}"] = block[f"{ff}.net.0.proj.{kind}"]
            made[f"{side}_mlp.2.{kind}"] = block[f"{ff}.net.2.{kind}"]
        for half, name in (("q", "query_norm"), ("k", "key_norm")):
            made[f"{side}_attn.norm.{name}.scale"] = block[f"attn.norm_{added}{half}.weight"]
    return made


def _flux_single(block: State) -> State:
    made: State = {}
    for kind in ("weight", "bias"):
        parts = [*(f"attn.to_{part}" for part in "qkv"), "proj_mlp"]
        made[f"linear1.{kind}"] = torch.cat([block[f"{part}.{kind}"] for part in parts])
        made[f"linear2.{kind}"] = block[f"proj_out.{kind}"]
        if f"norm.linear.{kind}" in block:
            made[f"modulation.lin.{kind}"] = block[f"norm.linear.{kind}"]
    for half, name in (("q", "query_norm"), ("k", "key_norm")):
        made[f"norm.{name}.scale"] = block[f"attn.norm_{half}.weight"]
    return made


def flux2_transformer(state: State) -> State:
    """`Flux2Transformer2DModel` as Black Forest Labs' checkpoints name it."""
    made: State = {}
    renamed = {
        "time_guidance_embed.timestep_embedder": "time_in",
        "context_embedder": "txt_in",
        "x_embedder": "img_in",
        "linear_1": "in_layer",
        "linear_2": "out_layer",
        "proj_out": "final_layer.linear",
        "modulation.linear": "modulation.lin",
        "modulation_img.linear": "modulation_img.lin",
        "modulation_txt.linear": "modulation_txt.lin",
        "single_transformer_blocks": "single_blocks",
        "transformer_blocks": "double_blocks",
        "attn.to_qkv_mlp_proj": "linear1",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_out": "linear2",
        "attn.to_add_out": "txt_attn.proj",
        "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
        "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
        "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    }
    for name, tensor in state.items():
        if match := re.fullmatch(r"(.*)\.attn\.(to_q|add_q_proj)\.weight", name):
            block, first = match.groups()
            parts = [state[name.replace(first, first.replace("q", part))] for part in "qkv"]
            side = "img" if first == "to_q" else "txt"
            new = f"{block}.{side}_attn.qkv.weight"
            made[new.replace("transformer_blocks", "double_blocks")] = torch.cat(parts)
        elif name == "norm_out.linear.weight":
            made["final_layer.adaLN_modulation.1.weight"] = _swapped(tensor)
        elif not re.search(r"\.(to_[kv]|add_[kv]_proj)\.", name):
            new = name
            for ours, theirs in renamed.items():
                new = new.replace(ours, theirs)
            side = "" if new.startswith("single") else "img_attn."
            for half, word in (("q", "query_norm"), ("k", "key_norm")):
                new = new.replace(f"attn.norm_{half}.weight", f"{side}norm.{word}.scale")
            made[new] = tensor
    return made


# What ComfyUI calls otherwise than diffusers in Z-Image.
_Z_IMAGE = {
    r"^all_(x_embedder|final_layer)\.2-1\.": r"\1.",
    r"\.norm_(q|k)\.": r".\1_norm.",
    r"\.to_out\.0\.": ".out.",
}


def z_image_transformer(state: State) -> State:
    """`ZImageTransformer2DModel` as ComfyUI names it, with query, key and value in one weight."""
    made: State = {}
    for name, tensor in state.items():
        if ".to_q." in name:
            parts = [state[name.replace(".to_q.", f".to_{part}.")] for part in "qkv"]
            made[name.replace(".to_q.", ".qkv.")] = torch.cat(parts)
        elif not re.search(r"\.to_[kv]\.", name):
            for pattern, replacement in _Z_IMAGE.items():
                name = re.sub(pattern, replacement, name)
            made[name] = tensor
    return made


_KREA2 = {
    r"^img_in\.": "first.",
    r"^time_embed\.linear_1\.": "tmlp.0.",
    r"^time_embed\.linear_2\.": "tmlp.2.",
    r"^time_mod_proj\.": "tproj.1.",
    r"^txt_in\.norm\.weight": "txtmlp.0.scale",
    r"^txt_in\.linear_1\.": "txtmlp.1.",
    r"^txt_in\.linear_2\.": "txtmlp.3.",
    r"^text_fusion\.": "txtfusion.",
    r"^transformer_blocks\.": "blocks.",
    r"^final_layer\.linear\.": "last.linear.",
    r"^final_layer\.norm\.weight": "last.norm.scale",
    r"^final_layer\.scale_shift_table": "last.modulation.lin",
    r"\.attn\.to_([qkv])\.": r".attn.w\1.",
    r"\.attn\.to_out\.0\.": ".attn.wo.",
    r"\.attn\.to_gate\.": ".attn.gate.",
    r"\.attn\.norm_([qk])\.weight": r".attn.qknorm.\1norm.scale",
    r"\.ff\.": ".mlp.",
    r"\.norm1\.weight": ".prenorm.scale",
    r"\.norm2\.weight": ".postnorm.scale",
    r"\.scale_shift_table": ".mod.lin",
}


def krea2_transformer(state: State) -> State:
    """`Krea2Transformer2DModel` as Krea's checkpoints name it, each block's table in one row."""
    made: State = {}
    for name, tensor in state.items():
        flat = name.startswith("transformer_blocks.") and name.endswith(".scale_shift_table")
        for pattern, replacement in _KREA2.items():
            name = re.sub(pattern, replacement, name)
        made[name] = tensor.flatten() if flat else tensor
    return made


def vae(state: State, levels: int) -> State:
    """`AutoencoderKL` as latent diffusion's checkpoints name it; its decoder counts backwards."""
    made: State = {}
    for name, tensor in state.items():
        new = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
        new = re.sub(r"down_blocks\.(\d+)", r"down.\1", new)
        new = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
        new = new.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
        new = re.sub(r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1", new)
        new = new.replace("resnets", "block").replace("conv_shortcut", "nin_shortcut")
        new = new.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
        new = new.replace("conv_norm_out", "norm_out")
        attention = "mid.attn_1" in new and "norm" not in new and tensor.ndim == 2
        made[new] = tensor[:, :, None, None] if attention else tensor
    return made


def sd3_pipeline(pipeline: Any) -> State:
    """A whole SD3 checkpoint with its text encoders, as Stability's sd3_medium_incl_clips_t5xxl."""
    parts = {
        "model.diffusion_model.": sd3_transformer(pipeline.transformer.state_dict()),
        "first_stage_model.": vae(pipeline.vae.state_dict(), 2),
        "text_encoders.clip_l.transformer.": pipeline.text_encoder.state_dict(),
        "text_encoders.clip_g.transformer.": pipeline.text_encoder_2.state_dict(),
        "text_encoders.t5xxl.transformer.": pipeline.text_encoder_3.state_dict(),
    }
    return {
        prefix + name: tensor.clone().contiguous()
        for prefix, state in parts.items()
        for name, tensor in state.items()
    }

"""The BPE tokenizers and the two small CLIP text encoders, trained contrastively with images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

MAX_LENGTH = 16  # tokens of a caption of the fashion model
# The zero rows that an SD3 pipeline without T5 appends to the prompt; 256 is diffusers' default.
MAX_SEQUENCE_LENGTH = 16
JOINT_DIM = 192
WIDTHS = (64, 96)
POOLED_DIM = sum(WIDTHS)
START, END = "<|startoftext|>", "<|endoftext|>"
SPLIT = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def train_bpe(captions: list[str], vocab_size: int = 1024) -> tuple[dict[str, int], list]:
    """Train and return vocabulary and merges in CLIP's format.

    The vocabulary has all 256 bytes, all bytes at the end of a word, the merges and the special
    tokens, so that any Unicode text can be encoded.
    """
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    trainer = BpeTrainer(vocab_size=vocab_size, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [letter + "</w>" for letter in alphabet]
    merges = []
    for pair in json.loads(tokenizer.to_str())["model"]["merges"]:
        merges.append(tuple(pair))
        if "".join(pair) not in tokens:
            tokens.append("".join(pair))
    tokens += [START, END]
    return {token: i for i, token in enumerate(tokens)}, merges


def build_tokenizers(
    captions: list[str], vocab_size: int = 1024, max_length: int = MAX_LENGTH
) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Build two tokenizers over one vocabulary; as in SD3, the second pads with "!", not END."""
    vocab, merges = train_bpe(captions, vocab_size)
    made = [
        CLIPTokenizer(
            vocab=dict(vocab), merges=list(merges), pad_token=pad, model_max_length=max_length
        )
        for pad in (END, "!")
    ]
    return made[0], made[1]


def build_encoders(tokenizer: CLIPTokenizer) -> list[CLIPTextModelWithProjection]:
    """Build text encoders of two layers each, `WIDTHS` wide, with SD3's two activations."""
    vocab_size, end_id = len(tokenizer), tokenizer.eos_token_id
    encoders = []
    for width, act, pad in zip(WIDTHS, ("quick_gelu", "gelu"), (end_id, 0), strict=True):
        config = CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=width // 32,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_act=act,
            bos_token_id=end_id - 1,
            eos_token_id=end_id,
            pad_token_id=pad,
        )
        encoders.append(CLIPTextModelWithProjection(config))
    return encoders


class ImageEncoder(nn.Module):
    """Maps pixels [n, channels, 32, 32] to [n, dim], for the contrastive loss only.

    It is not shipped.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, 32, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(64, 128, 3, 2, 1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(128 * 16, dim),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.net(pixels)


def _contrastive_loss(image: torch.Tensor, words: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the symmetric contrastive loss, where all rows with the same caption are positives."""
    logits = 10.0 * functional.normalize(image, dim=-1) @ functional.normalize(words, dim=-1).T
    target = (ids[:, None] == ids[None, :]).float()
    target = target / target.sum(1, keepdim=True)
    return (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    ) / 2


# Returns pixels [n, channels, 32, 32] and n captions, drawn with the generator.
DrawPairs = Callable[[int, torch.Generator], tuple[torch.Tensor, list[str]]]


def train_encoders(
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer], draw: DrawPairs, steps: int, batch: int = 256
) -> list[CLIPTextModelWithProjection]:
    """Train both text encoders for `steps` steps on pictures and captions from `draw`."""
    encoders = build_encoders(tokenizers[0])
    generator = torch.Generator().manual_seed(1)
    channels = draw(1, torch.Generator())[0].shape[1]
    towers = [ImageEncoder(channels, e.config.projection_dim) for e in encoders]
    modules = nn.ModuleList([*encoders, *towers])
    optimizer = torch.optim.AdamW(modules.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps + 1)
    for _ in (bar := tqdm(range(steps), "text encoders", mininterval=5.0)):
        pixels, captions = draw(batch, generator)
        number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        place = torch.tensor([number[caption] for caption in captions])
        loss = torch.zeros(())
        for tokenizer, encoder, tower in zip(tokenizers, encoders, towers, strict=True):
            words = encoder(tokenize(tokenizer, list(number))).text_embeds[place]
            loss = loss + _contrastive_loss(tower(pixels), words, place)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item() / 2:.3f}", refresh=False)
    for encoder in encoders:
        encoder.eval().requires_grad_(False)
    return encoders


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Return token ids [n, model_max_length], padded and truncated as the pipeline does."""
    return tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


@torch.no_grad()
def encode(
    tokenizers: list[CLIPTokenizer],
    encoders: list[CLIPTextModelWithProjection],
    prompts: list[str],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode `prompts` as `StableDiffusion3Pipeline.encode_prompt` does without T5.

    Returns the sequence [n, model_max_length + MAX_SEQUENCE_LENGTH, JOINT_DIM] and the pooled
    embedding [n, POOLED_DIM].
    """
    hidden, pooled = [], []
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        ids = tokenize(tokenizer, prompts).to(encoder.device)
        out = encoder(ids, output_hidden_states=True)
        hidden.append(out.hidden_states[-2])
        pooled.append(out.text_embeds)
    words = torch.cat(hidden, -1)
    words = functional.pad(words, (0, JOINT_DIM - words.shape[-1], 0, MAX_SEQUENCE_LENGTH))
    return words, torch.cat(pooled, -1)


def save_encoders(folder: Path, tokenizers: list, encoders: list) -> None:
    """Write tokenizer, tokenizer_2, text_encoder and text_encoder_2 under `folder`."""
    for suffix, tokenizer, encoder in zip(("", "_2"), tokenizers, encoders, strict=True):
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        encoder.save_pretrained(folder / f"text_encoder{suffix}")


def load_encoders(folder: Path) -> tuple[list, list]:
    """Read what `save_encoders` wrote."""
    tokenizers = [CLIPTokenizer.from_pretrained(folder / f"tokenizer{s}") for s in ("", "_2")]
    encoders = [
        CLIPTextModelWithProjection.from_pretrained(folder / f"text_encoder{s}").eval()
        for s in ("", "_2")
    ]
    return tokenizers, encoders

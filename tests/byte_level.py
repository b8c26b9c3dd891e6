"""Byte-level BPE tokenizers of language models: small trained ones, and the published ones."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny_t5 import prompts

REAL = Path(__file__).parents[1] / "build" / "deps" / "tokenizers"
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The messages as ChatML, which Qwen's templates use.
CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content"
    " + '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)

# A start token, the system's message and the user's, whose parts may be pictures.
INSTRUCT = (
    "{{ bos_token }}{%- for message in messages %}"
    "{%- set name = {'system': 'SYSTEM_PROMPT', 'user': 'INST'}[message.role] %}"
    "{{ '[' + name + ']' }}{%- for part in message.content %}"
    "{{ part.text if part.type == 'text' else '[IMG]' }}{%- endfor %}{{ '[/' + name + ']' }}"
    "{%- endfor %}"
)


def make_backend(pattern: str, size: int = 700, more: Sequence[str] = ()) -> Tokenizer:
    """A BPE trained on the prompts and on `more`, with words split by `pattern`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    texts = [*prompts(), "don't I'll WE'VE 1990s aaaa \n\n  \n"] * 3
    backend.train_from_iterator([*texts, *more], trainer)
    return backend


def qwen_like(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Like Qwen3's: form C, special tokens, and nothing around a text."""
    backend = make_backend(QWEN)
    backend.normalizer = normalizers.NFC()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=template,
    )
    tokenizer.add_tokens(["<think>", AddedToken("tie dye", normalized=True)])
    tokenizer.add_tokens([AddedToken("<|wide|>", lstrip=True, rstrip=True, special=True)])
    return tokenizer


def mistral_like(
    more: Sequence[str] = (), template: str | None = None, padding_side: str = "right"
) -> PreTrainedTokenizerFast:
    """Like Mistral's: whole words before merges, and a start token. `more` are special tokens."""
    state = json.loads(make_backend(TEKKEN, 900).to_str())
    state["model"]["ignore_merges"] = True
    state["model"]["vocab"]["ĠQzx"] = len(state["model"]["vocab"])  # no merges lead to it
    backend = Tokenizer.from_str(json.dumps(state))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        additional_special_tokens=["[INST]", "[/INST]", *more],
        chat_template=template,
        padding_side=padding_side,
    )
    start = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=start
    )
    return tokenizer


def three_digits() -> PreTrainedTokenizerFast:
    """Numbers of up to three digits, and an end token too, as other families have them."""
    backend = make_backend(QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends),
        ]
    )
    return tokenizer


def qwen3() -> PreTrainedTokenizerFast:
    """Qwen3's own tokenizer with its chat template."""
    return AutoTokenizer.from_pretrained(_real("qwen3"))


def mistral() -> PreTrainedTokenizerFast:
    """Mistral's tekken as transformers converts it."""
    from transformers.integrations.mistral.tokenizer import MistralConverter

    file = json.loads((_real("mistral") / "tekken.json").read_text(encoding="utf-8"))
    # This older file does not list them, and only the library mistral-common adds them.
    special = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>")
    file["special_tokens"] = [{"rank": i, "token_str": text} for i, text in enumerate(special)]
    with TemporaryDirectory() as folder:
        whole = Path(folder, "tekken.json")
        whole.write_text(json.dumps(file), encoding="utf-8")
        backend = MistralConverter(str(whole)).converted()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", pad_token="<pad>")


def _real(name: str) -> Path:
    """The folder that cmake/real_tokenizers.sh filled; skips where it is empty, never in CI."""
    if not any((REAL / name).glob("*.json")):
        message = f"needs {name}'s tokenizer: make build/deps/tokenizers/ready"
        if "CI" in os.environ:
            pytest.fail(message)
        pytest.skip(message)
    return REAL / name

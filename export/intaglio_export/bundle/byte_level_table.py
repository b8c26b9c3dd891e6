"""The table of a byte-level BPE tokenizer, which language models such as Qwen3 and Mistral have."""

from __future__ import annotations

from typing import Any

from intaglio_export.bundle.chat_template import ChatTemplate, around_prompt
from intaglio_export.bundle.split_pattern import split_pattern
from intaglio_export.bundle.tokenizer_state import added_token, state_of, steps, unfollowed
from intaglio_export.errors import ExportError

# What ByteLevel does apart from mapping bytes to characters is left to the step before it.
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def is_byte_level(state: dict[str, Any]) -> bool:
    """Return whether the tokenizer with this state is a byte-level BPE without ends of words."""
    model = state.get("model", {})
    kinds = [step["type"] for step in steps(state, "pre_tokenizer")] if model else []
    return (
        model.get("type") == "BPE"
        and not model.get("end_of_word_suffix")
        and kinds[-1:] == ["ByteLevel"]
    )


def byte_level_table(
    tokenizer: Any, max_length: int, template: ChatTemplate | None = None, pads_left: bool = False
) -> dict[str, Any]:
    """Return the byte-level BPE tables of a tokenizer of transformers.

    Args:
        tokenizer: a tokenizer that is backed by the tokenizers library, such as `Qwen2Tokenizer`.
        max_length: the number of tokens to which a prompt is padded or truncated.
        template: how a prompt is put into a chat. The rendered chat is a text like any other, so
            the tokenizer puts its special tokens around it, as in diffusers' pipelines.
        pads_left: whether padding before the prompt is expected.

    Returns:
        The ids of the 256 bytes, the merges as left, right and merged id in the order of their
        ranks, the pattern that splits a text into words, added tokens, the ids of special tokens
        before and after the text, the padding token under a name that says the side, the text
        around a prompt, and what is taken out of it. With ignore_merges, also all words that are
        tokens, written in GPT-2's characters for bytes.

    Raises:
        ExportError: the tokenizer does something that the runtime cannot do.
    """
    state = state_of(tokenizer)
    model = state["model"]
    _check_model(tokenizer, model, pads_left)
    vocab: dict[str, int] = model["vocab"]
    before, after = _special_tokens(state)
    if template and template.in_parts:
        before, after = [], []
    if template and template.after:
        after = [*after, *tokenizer(template.after).input_ids]
    table = {
        "type": "byte_level_bpe",
        "nfc": _normalizes(state),
        "pattern": _pattern(state),
        "bytes": [_id(tokenizer, vocab, character) for character in _alphabet()],
        "merges": _merges(tokenizer, model),
        "added_tokens": [added_token(token) for token in state["added_tokens"]],
        "before": before,
        "after": after,
        "left_pad_token_id" if pads_left else "pad_token_id": tokenizer.pad_token_id,
        "template": list(around_prompt(tokenizer, template)) if template else ["", ""],
        "max_length": max_length,
    }
    if template and template.removed:
        table["removed"] = template.removed
    if model.get("ignore_merges"):
        characters = set(_alphabet())
        table["words"] = {word: n for word, n in vocab.items() if characters.issuperset(word)}
    return table


def _check_model(tokenizer: Any, model: dict[str, Any], pads_left: bool) -> None:
    name = type(tokenizer).__name__
    for option in ("dropout", "continuing_subword_prefix", "byte_fallback"):
        if model.get(option):
            raise ExportError(
                f"The tokenizer {name} has the option {option}, which the runtime's tokenizer does"
                " not support."
            )
    if tokenizer.pad_token_id is None:
        raise ExportError(f"The tokenizer {name} lacks a padding token.")
    side = "left" if pads_left else "right"
    if (tokenizer.padding_side, tokenizer.truncation_side) != (side, "right"):
        raise ExportError(
            f"The tokenizer {name} pads on the {tokenizer.padding_side} and truncates on the"
            f" {tokenizer.truncation_side}, and this model's prompts need {side} and right; correct"
            " its tokenizer_config.json."
        )


def _alphabet() -> list[str]:
    """Return GPT-2's character for each byte: itself if it is visible, else from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(b if b in visible else 0x100 + hidden.index(b)) for b in range(256)]


def _merges(tokenizer: Any, model: dict[str, Any]) -> list[int]:
    vocab = model["vocab"]
    ids = []
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ids += [_id(tokenizer, vocab, token) for token in (left, right, left + right)]
    return ids


def _id(tokenizer: Any, vocab: dict[str, int], token: str) -> int:
    if token not in vocab:
        raise ExportError(
            f"The tokenizer {type(tokenizer).__name__} lacks the token {token!r}; download it"
            " again."
        )
    return vocab[token]


def _normalizes(state: dict[str, Any]) -> bool:
    """Return whether a text is normalized to form C."""
    found = list(steps(state, "normalizer"))
    for step in found:
        if step["type"] != "NFC":
            raise unfollowed("normalizer", step)
    return bool(found)


def _pattern(state: dict[str, Any]) -> dict[str, Any]:
    """Return the table of the expression by which words are split."""
    *splits, last = steps(state, "pre_tokenizer")
    if not _BYTE_LEVEL.items() <= last.items():
        raise unfollowed("pre-tokenizer", last)
    if len(splits) != 1:
        raise ExportError("The tokenizer does not have one Split pre-tokenizer, as Qwen3's has.")
    split = splits[0]
    if (
        split["type"] != "Split"
        or "Regex" not in split["pattern"]
        or (split["behavior"], split["invert"]) != ("Isolated", False)
    ):
        raise unfollowed("pre-tokenizer", split)
    return split_pattern(split["pattern"]["Regex"])


def _special_tokens(state: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the ids that are put before and after a text."""
    around: tuple[list[int], list[int]] = ([], [])
    for step in steps(state, "post_processor"):
        if step["type"] == "ByteLevel":  # it only changes offsets
            continue
        if step["type"] != "TemplateProcessing" or any(around):
            raise unfollowed("post-processor", step)
        side = 0
        for part in step["single"]:
            if "Sequence" in part:
                side = 1
            else:
                around[side].extend(step["special_tokens"][part["SpecialToken"]["id"]]["ids"])
    return around

"""Write `tables.json`, which the runtime's tokenizers read."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from intaglio_export.bundle.byte_level_table import byte_level_table, is_byte_level
from intaglio_export.bundle.chat_template import ChatTemplate
from intaglio_export.bundle.tokenizer_state import (
    added_token,
    refuse_added,
    state_of,
    steps,
    unfollowed,
)
from intaglio_export.errors import ExportError

FILE_NAME = "tables.json"
_END_OF_WORD = "</w>"
_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
_TWO_SPACES = {"Regex": " {2,}"}


def write_table(
    tokenizer: Any,
    max_length: int,
    folder: Path,
    *,
    lowercase: bool = False,
    template: ChatTemplate | None = None,
    pads_left: bool = False,
) -> None:
    """Write the table of `tokenizer` to `folder`/tables.json and create the folder.

    Args:
        tokenizer: a tokenizer of transformers 5: a `CLIPTokenizer`, a `T5Tokenizer`, or one with a
            byte-level BPE, such as `Qwen2Tokenizer`.
        max_length: the number of tokens to which a prompt is padded or truncated.
        lowercase: for T5, as in `t5_table`.
        template, pads_left: for a byte-level BPE, as in `byte_level_table`.

    Raises:
        ExportError: the tokenizer has another kind or does something that the runtime cannot do.
    """
    state = state_of(tokenizer)
    if state.get("model", {}).get("type") == "Unigram":
        table = t5_table(tokenizer, max_length, lowercase=lowercase)
    elif lowercase:
        raise ValueError("lowercase is for tables like T5's only")
    elif is_byte_level(state):
        table = byte_level_table(tokenizer, max_length, template, pads_left)
    else:
        table = clip_table(tokenizer, max_length)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(table, ensure_ascii=False, allow_nan=False)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def clip_table(tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Return the byte-pair encoding tables of a transformers CLIP tokenizer.

    Args:
        tokenizer: a `CLIPTokenizer` of transformers 5, which is backed by the tokenizers library.
        max_length: the number of tokens to which a prompt is padded or truncated.

    Returns:
        The vocabulary (token to id), merges ("a b" in rank order), ids of the special tokens, and
        added tokens with their id, or `{"id": n, "normalized": true}` for an added token that is
        searched in the normalized text.

    Raises:
        ExportError: the tokenizer is not a BPE tokenizer in CLIP's format, or an added token also
            matches text around it.
    """
    state = state_of(tokenizer)
    model = state.get("model", {})
    if model.get("type") != "BPE" or model.get("end_of_word_suffix") != _END_OF_WORD:
        raise ExportError(
            f"The tokenizer {type(tokenizer).__name__} is neither a byte-pair tokenizer in CLIP's"
            " format, nor a byte-level one like Qwen3's, nor a Unigram one like T5's, the only"
            " kinds that a bundle can hold."
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {
        "type": "clip_bpe",
        "vocab": model["vocab"],
        "merges": merges,
        "added_tokens": {token["content"]: _clip_added(token) for token in state["added_tokens"]},
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "unk_token_id": tokenizer.unk_token_id,
        "end_of_word_suffix": _END_OF_WORD,
        "max_length": max_length,
    }


def _clip_added(token: dict[str, Any]) -> int | dict[str, Any]:
    """Return the entry of an added token."""
    refuse_added(token, "lstrip", "rstrip", "single_word")
    number: int = token["id"]
    return {"id": number, "normalized": True} if token["normalized"] else number


def t5_table(tokenizer: Any, max_length: int, *, lowercase: bool = False) -> dict[str, Any]:
    """Return the Unigram tables of a transformers T5 tokenizer.

    Args:
        tokenizer: a `T5Tokenizer` of transformers 5, which is backed by the tokenizers library.
        max_length: the number of tokens to which a prompt is padded or truncated.
        lowercase: the pipeline applies `text.lower().strip()` to prompts, as PixArt does, so the
            runtime's tokenizer must do the same.

    Returns:
        The pieces in the order of their ids, their scores, normalizers in order, added tokens, and
        ids of the special tokens.

    Raises:
        ExportError: the tokenizer does something that the runtime cannot do.
    """
    state = state_of(tokenizer)
    model = state["model"]
    _check_specials(tokenizer, state)
    return {
        "type": "unigram",
        "pieces": [piece for piece, _ in model["vocab"]],
        "scores": [score for _, score in model["vocab"]],
        "unk_token_id": model["unk_id"],
        "byte_fallback": model.get("byte_fallback", False),
        "lowercase_strip": lowercase,
        "normalizers": [_normalizer(step) for step in steps(state, "normalizer")],
        "whitespace_split": _whitespace_split(state),
        "added_tokens": [added_token(token) for token in state["added_tokens"]],
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_length": max_length,
    }


def sentencepiece_problem(source: Path) -> str | None:
    """Say why a tokenizer that is only a SentencePiece file cannot be read, or return None.

    This is for the case that loading failed: transformers' own error then mentions tiktoken.
    """
    for model in sorted(source.glob("tokenizer*/*.model")):
        if (model.parent / "tokenizer.json").is_file():
            continue
        if find_spec("sentencepiece") is None:
            return (
                f"The tokenizer {model} is a SentencePiece file, which needs the package"
                " sentencepiece to be read; install it (pip install sentencepiece)."
            )
        if not _is_sentencepiece(model):
            return f"The tokenizer {model} is not a SentencePiece file; download it again."
    return None


def _is_sentencepiece(model: Path) -> bool:
    from sentencepiece import SentencePieceProcessor

    try:
        return bool(SentencePieceProcessor().LoadFromSerializedProto(model.read_bytes()))
    except (OSError, RuntimeError):
        return False


def _normalizer(step: dict[str, Any]) -> dict[str, Any]:
    if step["type"] == "Precompiled":
        return {"type": "precompiled", "charsmap": step["precompiled_charsmap"]}
    if step["type"] == "Strip":
        return {"type": "strip", "left": step["strip_left"], "right": step["strip_right"]}
    if step["type"] == "Replace" and step["pattern"] == _TWO_SPACES:
        return {"type": "replace_spaces", "content": step["content"]}
    raise unfollowed("normalizer", step)


def _whitespace_split(state: dict[str, Any]) -> bool:
    """Return whether text is split at white space before it is split at "▁"."""
    found = list(steps(state, "pre_tokenizer"))
    split = bool(found) and found[0]["type"] == "WhitespaceSplit"
    if split:
        del found[0]
    for step in found:
        if step != _METASPACE:
            raise unfollowed("pre-tokenizer", step)
    if len(found) != 1:
        raise ExportError("The tokenizer does not have one Metaspace pre-tokenizer, as T5's has.")
    return split


def _check_specials(tokenizer: Any, state: dict[str, Any]) -> None:
    """Check that one end token and then padding follow the text, as with T5."""
    name = type(tokenizer).__name__
    if None in (state["model"]["unk_id"], tokenizer.eos_token_id, tokenizer.pad_token_id):
        raise ExportError(f"The tokenizer {name} lacks one of the unknown, end and padding tokens.")
    if (tokenizer.padding_side, tokenizer.truncation_side) != ("right", "right"):
        raise ExportError(
            f"The tokenizer {name} pads or truncates on the left, which T5's does not."
        )
    processor = state["post_processor"] or {}
    single = [next(iter(part.items())) for part in processor.get("single", ())]
    specials = processor.get("special_tokens", {})
    ids = [specials[part["id"]]["ids"] for kind, part in single if kind == "SpecialToken"]
    if [kind for kind, _ in single] != ["Sequence", "SpecialToken"] or ids != [
        [tokenizer.eos_token_id]
    ]:
        raise ExportError(
            f"The tokenizer {name} does not add exactly one end token after the text."
        )

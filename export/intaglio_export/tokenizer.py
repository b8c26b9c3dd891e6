"""The table file that the runtime's CLIP tokenizer reads (`clip.json`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from intaglio_export.errors import ExportError

FILE_NAME = "clip.json"
_END_OF_WORD = "</w>"


def clip_table(tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Byte-pair encoding tables of a transformers CLIP tokenizer (fast; older forms are converted).

    Args:
        tokenizer: a `CLIPTokenizer` or `CLIPTokenizerFast` of transformers.
        max_length: tokens per prompt, padded or truncated to.

    Returns:
        vocab (token to id), merges (in rank order, "a b"), ids of the special tokens, added tokens.

    Raises:
        ExportError: the tokenizer is not a CLIP-format BPE tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {}
    model = state.get("model", {})
    if model.get("type") != "BPE" or model.get("end_of_word_suffix") != _END_OF_WORD:
        raise ExportError(
            f"The tokenizer {type(tokenizer).__name__} is not a byte-pair tokenizer in CLIP's"
            " format, the only kind that a bundle can hold so far."
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {
        "type": "clip_bpe",
        "vocab": model["vocab"],
        "merges": merges,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "unk_token_id": tokenizer.unk_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_length": max_length,
        "end_of_word_suffix": _END_OF_WORD,
        "added_tokens": {token["content"]: token["id"] for token in state["added_tokens"]},
    }


def write_clip_table(tokenizer: Any, max_length: int, folder: Path) -> None:
    """Write `clip_table` to `folder`/clip.json, making the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(clip_table(tokenizer, max_length), ensure_ascii=False)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")

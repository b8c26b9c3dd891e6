"""The table file that the runtime's CLIP tokenizer reads (`clip.json`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from intaglio_export.errors import ExportError

FILE_NAME = "clip.json"
_END_OF_WORD = "</w>"


def clip_table(tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Byte-pair encoding tables of a transformers CLIP tokenizer.

    Args:
        tokenizer: a `CLIPTokenizer` of transformers 5, which is backed by the tokenizers library.
        max_length: tokens per prompt, padded or truncated to.

    Returns:
        vocab (token to id), merges (in rank order, "a b"), ids of the special tokens, added tokens
        (to an id, or `{"id": n, "normalized": true}` for one looked for in the normalized text).

    Raises:
        ExportError: the tokenizer is not a CLIP-format BPE tokenizer, or an added token takes more
            than its own text.
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
        "added_tokens": {token["content"]: _added(token) for token in state["added_tokens"]},
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "unk_token_id": tokenizer.unk_token_id,
        "end_of_word_suffix": _END_OF_WORD,
        "max_length": max_length,
    }


def _added(token: dict[str, Any]) -> int | dict[str, Any]:
    """The entry of an added token."""
    for option in ("lstrip", "rstrip", "single_word"):
        if token[option]:
            raise ExportError(
                f"The tokenizer's added token {token['content']!r} has {option}, which the"
                " runtime's tokenizer does not follow."
            )
    number: int = token["id"]
    return {"id": number, "normalized": True} if token["normalized"] else number


def write_table(tokenizer: Any, max_length: int, folder: Path, *, lowercase: bool = False) -> None:
    """Write `clip_table` to `folder`/clip.json, making the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(clip_table(tokenizer, max_length), ensure_ascii=False)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")

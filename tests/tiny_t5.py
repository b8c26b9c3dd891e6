"""Small T5 tokenizers with the normalization of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
from transformers import T5Tokenizer

PROMPTS = Path(__file__).parent / "data" / "prompts.txt"


def prompts() -> list[str]:
    """The corpus of odd prompts: one a line, with JSON's escapes."""
    lines = PROMPTS.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(f'"{line}"') for line in lines]


def write_sentencepiece(folder: Path, pieces: int = 900) -> Path:
    """Train `folder`/spiece.model on the prompts, laid out as T5's: pad 0, end 1, unknown 2.

    T5's normalization is sentencepiece's default, nmt_nfkc, whose map goes into the file.
    """
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for line in prompts() * 3 if line.strip()),
        model_prefix=str(folder / "spiece"),
        vocab_size=pieces,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "spiece.model"


def make_tokenizer(folder: Path, pieces: int = 900) -> T5Tokenizer:
    """A tokenizer read from a `spiece.model` that is trained into `folder`."""
    write_sentencepiece(folder, pieces)
    return T5Tokenizer.from_pretrained(folder)

"""Compare token ids with transformers' fast CLIPTokenizer, through the exported tables."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AddedToken, AutoTokenizer, CLIPTokenizer

from intaglio import _core
from intaglio_export.bundle.tokenizer_tables import FILE_NAME, clip_table, write_table
from intaglio_export.errors import ExportError
from tests.tiny_t5 import prompts

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
SHIPPED = ROOT / "models" / "fashion-sd3"
Pair = tuple[CLIPTokenizer, _core.Tokenizer]

NORMALIZED = "tie dye"

# Only assigned characters, because C++ and Rust may know different versions of Unicode.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])
FRAGMENTS = st.sampled_from(
    [
        *("<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "<|", "|>", "</w>", "!", "!!"),
        *(NORMALIZED, NORMALIZED.upper(), "TIE", "a tie-dye"),
        *("'s", "'S", "'ll", "'re", "’s", "dress", "a dark boot", "T-Shirt", "1990s", "½", "٣"),
        *(" ", "  ", "\n", "\t", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff", "\u0085", "\0"),
        *("İ", "Σ", "ς", "ß", "ǅ", "ﬁ", "e\u0301", "\u0301", "\u0327", "\u0345", "\u08cf", "Å"),
        *("한", "\u1112\u1161\u11ab", "\u11a7", "が", "か\u3099", "中文", "👩‍👩‍👧", "🏽", "שּׁ", "क़"),
    ]
)
TEXTS = st.lists(st.one_of(FRAGMENTS, st.text(CHARACTERS, max_size=6)), max_size=12).map("".join)


def golden_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    tables = json.loads((DATA / "golden" / "clip_l.json").read_text(encoding="utf-8"))
    merges = [tuple(merge.split(" ")) for merge in tables["merges"]]
    return CLIPTokenizer(vocab=tables["vocab"], merges=merges, pad_token=pad_token)


def tokenizer_with(**options: bool) -> CLIPTokenizer:
    """Return the tokenizer of the golden file with an added token that has these options."""
    tokenizer = golden_tokenizer()
    tokenizer.add_tokens([AddedToken(NORMALIZED, **options)])
    return tokenizer


@pytest.fixture(scope="module", params=["clip_l", "clip_g", "added", "tokenizer", "tokenizer_2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """transformers' tokenizer and ours: a vocabulary of odd Unicode, and the shipped two."""
    if request.param.startswith("clip"):
        theirs = golden_tokenizer("!" if request.param == "clip_g" else "<|endoftext|>")
    elif request.param == "added":
        theirs = tokenizer_with(normalized=True)
    else:
        theirs = AutoTokenizer.from_pretrained(SHIPPED / request.param)
    folder = tmp_path_factory.mktemp(request.param)
    write_table(theirs, 77, folder)
    return theirs, _core.load_tokenizer(folder / FILE_NAME)


def assert_equal(pair: Pair, text: str, length: int) -> None:
    theirs, ours = pair
    expected = theirs(text, padding="max_length", max_length=length, truncation=True).input_ids
    tokens = ours.encode(text, length)
    assert tokens.ids == expected, ascii(text)
    whole = len(theirs(text).input_ids)
    assert (tokens.used, tokens.truncated) == (min(whole, length), whole > length)


@pytest.mark.parametrize("length", [2, 3, 16, 77])
def test_corpus(pair: Pair, length: int) -> None:
    for text in prompts():
        assert_equal(pair, text, length)


@settings(deadline=None, max_examples=400)
@given(text=TEXTS, length=st.integers(2, 80))
@example(text="", length=77)
@example(text="a" * 10000, length=77)
@example(text="ab'" * 3000 + "<|endoftext|>", length=77)
def test_any_text(pair: Pair, text: str, length: int) -> None:
    assert_equal(pair, text, length)


def test_a_normalized_token_is_found_in_the_normalized_text(tmp_path: Path) -> None:
    theirs = tokenizer_with(normalized=True)
    write_table(theirs, 77, tmp_path)
    ours = _core.load_tokenizer(tmp_path / FILE_NAME)
    number = theirs.convert_tokens_to_ids(NORMALIZED)
    assert number in ours.encode(f"a {NORMALIZED.upper()} dress", 77).ids


@pytest.mark.parametrize("option", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_take_more_than_their_text_are_refused(option: str) -> None:
    with pytest.raises(ExportError, match=f"'{NORMALIZED}' has {option}"):
        clip_table(tokenizer_with(**{option: True}), 77)


def test_refuses_what_is_no_text(pair: Pair) -> None:
    with pytest.raises(_core.InputError, match=r"UTF-8|surrogate"):
        pair[1].encode("a\ud800b", 16)
    with pytest.raises(_core.UsageError, match="length of 1"):
        pair[1].encode("a", 1)

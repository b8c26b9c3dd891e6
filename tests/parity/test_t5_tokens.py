"""Compare token ids with transformers' fast T5Tokenizer, through the table that export writes."""

import base64
import json
import random
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from transformers import AddedToken, PreTrainedTokenizerFast, T5Tokenizer

from intaglio import _core
from intaglio_export.bundle.tokenizer_tables import (
    FILE_NAME,
    sentencepiece_problem,
    t5_table,
    write_table,
)
from intaglio_export.errors import ExportError
from intaglio_export.sources import open_source
from tests.families.sd3 import make_sd35
from tests.tiny_t5 import make_tokenizer, prompts, write_sentencepiece

Pair = tuple[T5Tokenizer, _core.Tokenizer]
LENGTHS = [1, 2, 3, 16, 77, 128, 256, 300, 512]
# The Unicode planes that contain more than ideographs.
EVERYTHING = [*range(1, 0x20000), *range(0xE0000, 0xE0200)]

# Only assigned characters, because C++ and Rust may know different versions of Unicode.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])
MARKS = st.characters(categories=["Mn", "Mc", "Me", "Cf"])
FRAGMENTS = st.sampled_from(
    [
        *(
            "</s>",
            "<pad>",
            "<unk>",
            "<extra_id_0>",
            "<extra_id_99>",
            " <extra_id_7>\t",
            "<extra_id_",
        ),
        *("</", "s>", "＜/s＞", "< pad >", "[SEP] ", "Tie Dye", "ＴＩＥ ＤＹＥ"),
        *(
            "▁",
            "▁▁",
            "▁a",
            " ▁",
            " ",
            "  ",
            "   ",
            "\n",
            "\r\n",
            "\t",
            "\u00a0",
            "\u3000",
            "\u2028",
        ),
        *("\u200b", "\u200d", "\ufeff", "\u0085", "\0", "\x1c", "\x7f", "\u00ad"),
        *("dress", "a dark boot", "T-Shirt", "1990s", "½", "٣", "²\u0301", "ª\u0301", "e\u0301"),
        *("İ", "Σ", "ΑΣ", "'Σ.", "ς", "ß", "ǅ", "ﬁ", "ﬁ\u0301", "\u0301", "Å", "¨", "™\u200d"),
        *(
            "한",
            "\u1112\u1161\u11ab",
            "が",
            "か\u3099",
            "ｶﾞ",
            "中文",
            "㌔",
            "👩‍👩‍👧",
            "🏽",
            "שּׁ",
            "क़",
        ),
    ]
)
PARTS = st.one_of(FRAGMENTS, st.text(CHARACTERS, max_size=6), st.text(MARKS, max_size=2))
TEXTS = st.lists(PARTS, max_size=12).map("".join)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> T5Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("t5"))


def charsmap(tokenizer: T5Tokenizer) -> bytes:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return base64.b64decode(state["normalizer"]["precompiled_charsmap"])


def characters(seed: int, normalization: bytes | None) -> T5Tokenizer:
    """Return a tokenizer with a piece for nearly every character, and with many for pairs."""
    draw = random.Random(seed)
    pieces = dict.fromkeys(("<pad>", "</s>", "<unk>", "▁"), 0.0)
    signs = [chr(c) for c in EVERYTHING if unicodedata.category(chr(c)) not in ("Cs", "Co")]
    pieces |= {sign: -draw.uniform(1, 15) for sign in signs if draw.random() < 0.97}
    frequent = [sign for sign in signs if ord(sign) < 0x500] + ["▁"] * 200
    for _ in range(20000):
        piece = "".join(draw.choices(frequent, k=draw.randint(2, 4)))
        pieces.setdefault(piece, -draw.uniform(1, 15))
    return T5Tokenizer(vocab=list(pieces.items()), _spm_precompiled_charsmap=normalization)


def with_added_tokens(trained: T5Tokenizer, folder: Path) -> T5Tokenizer:
    """Add tokens that strip white space, as in older T5 folders, and a normalized one."""
    trained.save_pretrained(folder)
    tokenizer = T5Tokenizer.from_pretrained(folder)
    both = {"lstrip": True, "rstrip": True, "normalized": False, "special": True}
    numbers = range(0, 100, 7)
    tokenizer.add_tokens([AddedToken(f"<extra_id_{i}>", **both) for i in numbers])
    tokenizer.add_tokens([AddedToken("[SEP]", rstrip=True), AddedToken("Tie Dye", normalized=True)])
    return tokenizer


def older(trained: T5Tokenizer, byte_fallback: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer as transformers 4 wrote it for sentencepiece models. It does not split at
    white space and has two more normalizers. Only the generic class loads it unchanged."""
    state = json.loads(trained.backend_tokenizer.to_str())
    vocab = [(piece, score) for piece, score in state["model"]["vocab"]]
    if byte_fallback:
        vocab += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    backend = trained.backend_tokenizer.__class__(Unigram(vocab, 2, byte_fallback))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(charsmap(trained)),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = trained.backend_tokenizer.post_processor
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


KINDS: dict[str, Callable[[T5Tokenizer, Path], object]] = {
    "trained": lambda trained, _: trained,
    "added": with_added_tokens,
    "characters": lambda trained, _: characters(1, charsmap(trained)),
    "older": lambda trained, _: older(trained),
    "bytes": lambda trained, _: older(trained, byte_fallback=True),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, trained: T5Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    """Return transformers' tokenizer and ours."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = KINDS[request.param](trained, folder)
    return theirs, ours(theirs, folder)


def ours(tokenizer: object, folder: Path, **options: bool) -> _core.Tokenizer:
    write_table(tokenizer, 77, folder, **options)
    return _core.load_tokenizer(folder / FILE_NAME)


def assert_equal(pair: Pair, text: str, length: int) -> None:
    theirs, mine = pair
    expected = theirs(text, padding="max_length", max_length=length, truncation=True)
    tokens = mine.encode(text, length)
    assert tokens.ids == expected.input_ids, ascii(text)
    assert tokens.used == sum(expected.attention_mask)
    assert tokens.truncated == (len(theirs(text).input_ids) > length)


@pytest.mark.parametrize("length", LENGTHS)
def test_corpus(pair: Pair, length: int) -> None:
    for text in [*prompts(), " ".join(prompts())]:
        assert_equal(pair, text, length)


@settings(deadline=None, max_examples=400)
@given(text=TEXTS, length=st.sampled_from(LENGTHS))
@example(text="", length=77)
@example(text="\u0301" * 1000 + "a" * 10000 + "▁" * 1000, length=300)
@example(text="x" * 5000 + "<extra_id_0>" * 3, length=16)
@example(text="<extra_id_7>   <extra_id_0>", length=16)
@example(text="＜unk＞ж<unk>", length=16)
def test_any_text(pair: Pair, text: str, length: int) -> None:
    assert_equal(pair, text, length)


@pytest.mark.parametrize("before", ["", "²", "a"])
def test_every_character_is_normalized_alike(
    trained: T5Tokenizer, tmp_path: Path, before: str
) -> None:
    """A short character is replaced together with the combining marks that follow it."""
    theirs = characters(2, charsmap(trained))
    mine = ours(theirs, tmp_path)
    signs = [before + chr(c) for c in EVERYTHING if not 0xD800 <= c < 0xE000]
    for part in range(0, len(signs), 50000):
        text = " ".join(signs[part : part + 50000])
        assert mine.encode(text, 300000).ids[:280000] == pad(theirs(text).input_ids, 280000)


def pad(ids: Sequence[int], length: int) -> list[int]:
    assert len(ids) < length
    return [*ids, *[0] * (length - len(ids))]


def test_lowercase_is_pythons(tmp_path: Path) -> None:
    theirs = characters(3, None)
    mine = ours(theirs, tmp_path, lowercase=True)
    # utf8proc follows a newer Unicode than Python 3.11, where these two have other categories.
    changed = {"\u0295", "\U0001171e"}
    known = [chr(c) for c in EVERYTHING if unicodedata.category(chr(c)) not in ("Cs", "Cn")]
    signs = [sign for sign in known if sign not in changed]
    for pattern in ("{}", "aΣ{}", "aΣ{}b", "a{}Σ", "{}Σ"):
        for part in range(0, len(signs), 50000):
            text = " ".join(pattern.format(sign) for sign in signs[part : part + 50000])
            expected = pad(theirs(text.lower().strip()).input_ids, 280000)
            assert mine.encode(text, 300000).ids[:280000] == expected
    separators = [s for s in signs if unicodedata.category(s) in ("Zs", "Zl", "Zp", "Cc", "Cf")]
    for sign in separators:
        text = f"{sign}A{sign}\n"
        assert mine.encode(text, 8).ids == pad(theirs(text.lower().strip()).input_ids, 8)


@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_lowercase_any_text(text: str, lowercase_pair: Pair) -> None:
    theirs, mine = lowercase_pair
    expected = theirs(
        text.lower().strip(), padding="max_length", max_length=300, truncation=True
    ).input_ids
    assert mine.encode(text, 300).ids == expected


@pytest.fixture(scope="module")
def lowercase_pair(trained: T5Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return trained, ours(trained, tmp_path_factory.mktemp("lower"), lowercase=True)


def test_megabytes(pair: Pair) -> None:
    for text in ("\u0301" * 10**6, "a" * 10**6, "½ " * 10**6, "\t" * 10**6, "▁" * 10**6):
        tokens = pair[1].encode(text, 512)
        assert len(tokens.ids) == 512


def test_refuses_what_is_no_text(pair: Pair) -> None:
    with pytest.raises(_core.InputError, match=r"UTF-8|surrogate"):
        pair[1].encode("a\ud800b", 16)
    with pytest.raises(_core.UsageError, match="length of 0"):
        pair[1].encode("a", 0)


def test_what_the_runtime_does_not_follow_is_named(trained: T5Tokenizer) -> None:
    def refused(match: str, **parts: object) -> None:
        tokenizer = older(trained)
        for name, part in parts.items():
            target = tokenizer if name.endswith("_side") else tokenizer.backend_tokenizer
            setattr(target, name, part)
        with pytest.raises(ExportError, match=match):
            t5_table(tokenizer, 77)

    refused(r"normalizer NFKD", normalizer=normalizers.NFKD())
    refused(r'normalizer Replace .*"String": " "', normalizer=normalizers.Replace(" ", "▁"))
    refused("pre-tokenizer Metaspace .*first", pre_tokenizer=pre_tokenizers.Metaspace("▁", "first"))
    refused("pre-tokenizer Whitespace ", pre_tokenizer=pre_tokenizers.Whitespace())
    refused("Metaspace", pre_tokenizer=None)
    refused("end token", post_processor=None)
    refused("left", truncation_side="left")
    refused("left", padding_side="left")
    tokenizer = older(trained)
    tokenizer.add_tokens([AddedToken("boot", single_word=True)])
    with pytest.raises(ExportError, match="'boot' has single_word"):
        t5_table(tokenizer, 77)
    with pytest.raises(ExportError, match="neither a byte-pair tokenizer"):
        write_table(object(), 77, Path())


def test_a_sentencepiece_file_alone_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    make_sd35().save_pretrained(source)
    shutil.rmtree(source / "tokenizer_3")
    (source / "tokenizer_3").mkdir()
    model = write_sentencepiece(source / "tokenizer_3")
    assert sentencepiece_problem(source) is None
    model.write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"tokenizer_3/spiece\.model is not a SentencePiece file"):
        open_source(source)
    monkeypatch.setattr("intaglio_export.bundle.tokenizer_tables.find_spec", lambda _: None)
    with pytest.raises(ExportError, match="needs the package sentencepiece"):
        open_source(source)

"""Compare token ids with transformers' fast tokenizers of language models, through the tables."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerFast

from intaglio import _core
from intaglio_export.bundle.byte_level_table import byte_level_table
from intaglio_export.bundle.chat_template import ChatTemplate
from intaglio_export.bundle.split_pattern import characters_of, split_pattern
from intaglio_export.bundle.tokenizer_tables import FILE_NAME, write_table
from intaglio_export.errors import ExportError
from tests.byte_level import (
    CHATML,
    QWEN,
    make_backend,
    mistral,
    mistral_like,
    qwen3,
    qwen_like,
    three_digits,
)
from tests.tiny_t5 import prompts

Pair = tuple[PreTrainedTokenizerFast, _core.Tokenizer]
LENGTHS = [3, 4, 16, 77, 300, 512]
KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "qwen": qwen_like,
    "mistral": mistral_like,
    "three digits": three_digits,
}
PIECES = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "tie dye", " <|wide|>\n ", "<|"),
    *("<s>", "</s>", "[INST]", "[/INST]", "'s", "'S", "'ſ", "'ll", "'LL", "'Ve", "don't", "I'm"),
    *(" ", "  ", "\n", "\r\n", "\n\n", "\t", "\u00a0", "\u3000", "\u200b", "\u2028", "\x85", "\0"),
    *("123", "1234567", "3.14", "½", "٣", "²", "hello", " world", "HELLO", "camelCase", "ABCdef"),
    *("a/b", "//", "/\n", "...", "!?", " !", "e\u0301", "é", "Å", "か\u3099", "한", "\u11a7"),
    *("\u1112\u1161\u11ab", "中文字", "👩‍👩‍👧", "ﬁ", "ǅ", "ʰ", "ª", "ß", "İ", "Σ", "  \n ", "   a"),
    *("a dark boot", "T-Shirt", "1990s", " Qzx", "\u0301", "\u0327\u0301", "\u0378", "\ue000"),
]
CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(CHARACTERS, max_size=6)), max_size=12)


def ours(tokenizer: object, folder: Path, **options: Any) -> _core.Tokenizer:
    write_table(tokenizer, 77, folder, **options)
    return _core.load_tokenizer(folder / FILE_NAME)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    theirs = KINDS[request.param]()
    return theirs, ours(theirs, tmp_path_factory.mktemp("tokenizer"))


def assert_equal(pair: Pair, text: str, length: int) -> None:
    theirs, mine = pair
    expected = theirs(text, padding="max_length", max_length=length, truncation=True)
    tokens = mine.encode(text, length)
    assert tokens.ids == expected.input_ids, ascii(text)
    assert tokens.used == sum(expected.attention_mask)
    assert tokens.truncated == (len(theirs(text).input_ids) > length)


def assert_all_equal(pair: Pair, texts: list[str]) -> None:
    """The same without truncation; it takes a hundredth of the time."""
    theirs, mine = pair
    for text, one in zip(texts, theirs.backend_tokenizer.encode_batch(texts), strict=True):
        tokens = mine.encode(text, max(len(one.ids), 3))
        assert tokens.ids[: tokens.used] == one.ids, ascii(text)


def random_texts(count: int, seed: int = 0) -> Iterable[str]:
    draw = random.Random(seed)
    assigned = [chr(c) for c in range(0x30000) if unicodedata.category(chr(c)) not in ("Cs", "Cn")]
    for _ in range(count):
        parts = [
            draw.choice(
                (
                    draw.choice(PIECES),
                    "".join(draw.choices(assigned, k=3)),
                    "".join(chr(draw.randint(0x20, 0x7E)) for _ in range(8)),
                    "".join(chr(draw.randint(0xA0, 0x5FF)) for _ in range(4)),
                    draw.choice(" \n\taA1é") * draw.randint(1, 30),
                )
            )
            for _ in range(draw.randint(1, 12))
        ]
        yield "".join(parts)


@pytest.mark.parametrize("length", LENGTHS)
def test_corpus(pair: Pair, length: int) -> None:
    for text in [*prompts(), " ".join(prompts())]:
        assert_equal(pair, text, length)


@settings(deadline=None, max_examples=300)
@given(parts=TEXTS, length=st.sampled_from(LENGTHS))
@example(parts=[], length=77)
@example(parts=[" " * 5000 + "a" * 5000 + "A" * 5000 + "\n" * 500], length=300)
@example(parts=["x" * 5000, "<|im_end|>"], length=16)
def test_any_text(pair: Pair, parts: list[str], length: int) -> None:
    assert_equal(pair, "".join(parts), length)


def test_random_texts_and_characters(pair: Pair) -> None:
    assert_all_equal(pair, list(random_texts(3000)))
    # Among letters, and after an apostrophe, where the pattern ignores case.
    for form in ("{}", "a{}b", "'{}", "'l{}", " {}\n "):
        assert_all_equal(pair, [form.format(chr(c)) for c in range(0x3000)])


@pytest.mark.slow
@pytest.mark.parametrize("make", [qwen3, mistral])
def test_published_tokenizers(make: Callable[[], PreTrainedTokenizerFast], tmp_path: Path) -> None:
    theirs = make()
    real = theirs, ours(theirs, tmp_path / "text")
    for text in prompts():
        assert_equal(real, text, 300)
    assert_all_equal(real, list(random_texts(5000, seed=1)))
    assert_all_equal(real, [chr(c) for c in range(0x3000)])
    if theirs.chat_template:
        options = {"add_generation_prompt": True, "enable_thinking": False}
        assert_chat_is_equal(theirs, ChatTemplate(options=options), tmp_path / "chat")


def assert_chat_is_equal(
    theirs: PreTrainedTokenizerFast, template: ChatTemplate, folder: Path
) -> None:
    mine = ours(theirs, folder, template=template)
    system = [] if template.system is None else [{"role": "system", "content": template.system}]
    for text in prompts():
        messages = [*system, {"role": "user", "content": text}]
        for length in (16, 64, 512):
            chat = theirs.apply_chat_template(messages, tokenize=False, **template.options)
            expected = theirs(chat, padding="max_length", truncation=True, max_length=length)
            tokens = mine.encode(text, length)
            assert tokens.ids == expected.input_ids, ascii(text)
            assert tokens.used == sum(expected.attention_mask)


@pytest.mark.parametrize(
    "template",
    [
        ChatTemplate(options={"add_generation_prompt": True}),
        ChatTemplate(options={"add_generation_prompt": True, "enable_thinking": False}),
        ChatTemplate(system="Describe the picture."),
    ],
)
def test_chat_template(template: ChatTemplate, tmp_path: Path) -> None:
    assert_chat_is_equal(qwen_like(), template, tmp_path)


def test_special_tokens_around_a_chat(tmp_path: Path) -> None:
    """Pipelines render the chat as a text and tokenize that, which adds them once more."""
    tokenizer = qwen_like()
    end = [("<|endoftext|>", tokenizer.pad_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=end
    )
    assert_chat_is_equal(tokenizer, ChatTemplate(system="Describe the picture."), tmp_path)
    table = byte_level_table(tokenizer, 77, ChatTemplate())
    assert table["after"] == [tokenizer.pad_token_id]


def test_what_a_template_must_not_do() -> None:
    def refused(match: str, template: str | None) -> None:
        with pytest.raises(ExportError, match=match):
            byte_level_table(qwen_like(template), 77, ChatTemplate())

    refused("has no chat template", None)
    refused(r"changes the prompt '  two spaces  '", CHATML.replace("content", "content | trim"))
    refused("does not show a prompt once", "{{ bos_token }}")
    refused("does not show a prompt once", CHATML + "{{ messages[0].content }}")


def test_megabytes(pair: Pair) -> None:
    for text in (" " * 10**6, "A" * 10**6, "½ " * 10**6, "\t\n" * 10**5, "中" * 10**6):
        assert len(pair[1].encode(text, 512).ids) == 512


def test_refuses_what_is_no_text(pair: Pair) -> None:
    with pytest.raises(_core.InputError, match=r"UTF-8|surrogate"):
        pair[1].encode("a\ud800b", 16)
    with pytest.raises(_core.UsageError, match="length of 0"):
        pair[1].encode("a", 0)


@pytest.mark.parametrize("one", [r"\p{L}", r"[^\s\p{L}\p{N}]", r"\S", "(?i:s)"])
def test_sets_have_the_characters_of_every_plane(one: str) -> None:
    """Most characters of the higher planes are not asked for one by one."""
    ranges = characters_of(one)
    found = {c for first, last in ranges for c in range(first, last + 1)}
    draw = random.Random(0)
    others = [c for c in draw.sample(range(0x110000), 20000) if not 0xD800 <= c < 0xE000]
    for c in [*range(0x3000), *others]:
        text = chr(c) + "-"
        matches = normalizers.Replace(Regex(rf"\A{one}-"), "").normalize_str(text) == ""
        assert (c in found) == matches, hex(c)


@pytest.mark.parametrize(
    "expression",
    [
        r"\p{L}++|\s",  # possessive
        r"\p{L}+?|\s",  # lazy
        r"a(?:b|c)|\s",  # a group inside
        r"(?:ab)+|\s",  # a repeated group
        r"(?<=a)b|\s",
        r"(a|b)\1",
        r"^a|\s",
        r"\bfoo",
        r"a.|\s",
        r"\s*",  # matches nothing
        r"a||b",
    ],
)
def test_expressions_that_are_refused(expression: str) -> None:
    with pytest.raises(ExportError, match="splits a text by the regular expression"):
        split_pattern(expression)


def test_what_the_runtime_does_not_follow_is_named() -> None:
    def refused(match: str, **parts: object) -> None:
        tokenizer = qwen_like()
        for name, part in parts.items():
            target = tokenizer if name.endswith("_side") else tokenizer.backend_tokenizer
            setattr(target, name, part)
        with pytest.raises(ExportError, match=match):
            byte_level_table(tokenizer, 77)

    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    refused("normalizer NFKC", normalizer=normalizers.NFKC())
    refused("pre-tokenizer ByteLevel", pre_tokenizer=pre_tokenizers.ByteLevel())
    refused("one Split", pre_tokenizer=last)
    refused("one Split", pre_tokenizer=pre_tokenizers.Sequence([split, split, last]))
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(), last])
    refused("pre-tokenizer Digits", pre_tokenizer=digits)
    merged = pre_tokenizers.Split(Regex(QWEN), "merged_with_next")
    refused("MergedWithNext", pre_tokenizer=pre_tokenizers.Sequence([merged, last]))
    refused("post-processor Bert", post_processor=processors.BertProcessing(("a", 1), ("b", 2)))
    refused("left", truncation_side="left")
    refused("left", padding_side="left")
    tokenizer = qwen_like()
    tokenizer.add_tokens([AddedToken("boot", single_word=True)])
    with pytest.raises(ExportError, match="'boot' has single_word"):
        byte_level_table(tokenizer, 77)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_backend(QWEN))
    with pytest.raises(ExportError, match="lacks a padding token"):
        byte_level_table(tokenizer, 77)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("bytes", [0] * 255, "does not have an id for each of 256 bytes"),
        ("bytes", [-1] * 256, "has a number in bytes that is none or too large"),
        ("merges", [1, 2], "has merges that are not triples"),
        ("merges", [1, 2, 2**40], "has a number in merges"),
        ("nfc", 1, "has a nfc that is not a boolean"),
        ("words", {"a b": 1}, 'has the word "a b", which is not made of bytes'),
        ("words", [], "has words that are not an object"),
        ("template", ["a"], "has a template that is not a pair of texts"),
        ("left_pad_token_id", "a", "has a left_pad_token_id that is not a token id"),
        ("removed", 1, "has a removed that is not a text"),
        ("pad_token_id", None, "has a pad_token_id that is not a token id"),
        ("pattern", {"sets": []}, "lacks alternatives"),
        ("pattern", {"sets": [[[5, 4]]], "alternatives": []}, "has a set whose ranges"),
        ("pattern", {"sets": [[[0, 2**21]]], "alternatives": []}, "has a number in sets"),
        ("pattern", {"sets": [], "alternatives": [[{"not_before": 0}]]}, "without sets"),
        (
            "pattern",
            {"sets": [[[1, 2]]], "alternatives": [[{"set": 1, "min": 0, "max": 1}]]},
            "has a number in pattern",
        ),
        (
            "pattern",
            {"sets": [[[1, 2]]], "alternatives": [[{"not_before": 0}] * 17]},
            "list of up to 16 steps",
        ),
    ],
)
def test_damaged_tables(tmp_path: Path, key: str, value: object, says: str) -> None:
    write_table(qwen_like(), 77, tmp_path)
    file = tmp_path / FILE_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(_core.InputError) as caught:
        _core.load_tokenizer(file)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"the tokenizer {file} ")

"""The fixed text that a language model's chat template puts around a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from intaglio_export.errors import ExportError

# Prompts that a template could change: white space at the ends, several lines, markup, nothing.
_PROBES = ("a fox in the snow", "  two spaces  ", "one line\nanother\n", "{{ a }} <b>&amp;</b>", "")


@dataclass(frozen=True)
class ChatTemplate:
    """How a pipeline puts one prompt, the message of a user, into a chat.

    Attributes:
        text: the pipeline's own template with {} for the prompt. It stands in for the tokenizer's,
            and a prompt in it is tokenized as any text.
        system: the message of the system before it, if the pipeline has one.
        in_parts: whether the messages are lists of parts, as processors take them. The pipeline's
            `apply_chat_template` then makes the tokens too, and adds no special tokens.
        removed: what the pipeline takes out of a prompt.
        after: a text whose tokens follow a prompt that was cut, and so are never cut themselves.
        options: what the pipeline passes to `apply_chat_template`, such as add_generation_prompt
            or enable_thinking.
    """

    text: str | None = None
    system: str | None = None
    in_parts: bool = False
    removed: str = ""
    after: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def around_prompt(tokenizer: Any, template: ChatTemplate) -> tuple[str, str]:
    """Return the text before and after a prompt, by `template.text` or else as
    `tokenizer.apply_chat_template` renders it.

    Raises:
        ExportError: the tokenizer has no chat template, or the template changes the prompt, so
            that no text around it is the same for all prompts.
    """
    if template.text is not None:
        before, _, after = template.text.partition("{}")
        return before, after
    name = type(tokenizer).__name__
    if not tokenizer.chat_template:
        raise ExportError(
            f"The tokenizer {name} has no chat template, which this model's prompts need: download"
            " chat_template.jinja or tokenizer_config.json of the model again."
        )
    mark = "\ue000prompt\ue001"  # private characters, which no template has
    before, found, after = _render(tokenizer, template, mark).partition(mark)
    if not found or mark in after:
        raise ExportError(f"The chat template of the tokenizer {name} does not show a prompt once.")
    for prompt in _PROBES:
        if _render(tokenizer, template, prompt) != before + prompt + after:
            raise ExportError(
                f"The chat template of the tokenizer {name} changes the prompt {prompt!r}, which"
                " the runtime's tokenizer does not support."
            )
    start = tokenizer.bos_token
    if template.in_parts and start and not before.startswith(start):
        raise ExportError(  # a processor adds special tokens then, and a tokenizer does not
            f"The chat template of the tokenizer {name} does not begin with {start}, which the"
            " exporter does not support."
        )
    return before, after


def _render(tokenizer: Any, template: ChatTemplate, prompt: str) -> str:
    contents: dict[str, Any] = {"user": prompt}
    if template.system is not None:
        contents = {"system": template.system} | contents
    if template.in_parts:
        contents = {role: [{"type": "text", "text": text}] for role, text in contents.items()}
    messages = [{"role": role, "content": content} for role, content in contents.items()]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **template.options)
    return text

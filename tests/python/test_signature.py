"""The front end's keywords are the library's one list of options."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import intaglio
from intaglio import _core

PARAMETERS = inspect.signature(intaglio.Pipeline.generate).parameters
# What a flag names a file for, and what only Python has.
PYTHON_ONLY = ["image", "mask", "latents", "ma_tokens", "prompt_embeds", "on_step", "progress"]
INFOS = {info.name: info for info in _core.option_infos()}


def test_names_and_order_are_the_same() -> None:
    assert [*INFOS, *PYTHON_ONLY] == [name for name in PARAMETERS if name != "self"]


@pytest.mark.parametrize("name", INFOS)
def test_defaults_are_the_same(name: str) -> None:
    ours: Any = PARAMETERS[name].default
    theirs = _core.option_defaults()[name]
    if isinstance(theirs, list):
        ours = list(ours) if isinstance(ours, tuple) else [ours]
    assert ours == theirs


def test_all_but_the_prompt_is_by_keyword() -> None:
    assert PARAMETERS["prompt"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    rest = [p.kind for name, p in PARAMETERS.items() if name not in {"self", "prompt"}]
    assert set(rest) == {inspect.Parameter.KEYWORD_ONLY}


def test_every_keyword_is_documented() -> None:
    # Two may share a line: "height, width: size of the images".
    lines = re.findall(r"^ +(\w+(?:, \w+)*): ", intaglio.Pipeline.generate.__doc__ or "", re.M)
    described = {name for line in lines for name in line.split(", ")}
    assert {name for name in PARAMETERS if name != "self"} <= described


def test_infos_have_help() -> None:
    assert all(info.value and info.help for info in INFOS.values())

"""The emoji as RGBA pictures of 64x64 pixels with their names, groups and styles.

Each emoji comes in up to three styles. Some names are held out in all styles, and some pairs of a
style and a name are held out although the name is trained in another style.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from . import packages

SIZE = 64
STYLES = ("cartoon", "flat", "glossy 3d")
# Country flags are not in all sets, and letters and Japanese words cannot be read at this size.
LEFT_OUT = {"skin-tone", "hair-style", "keycap", "alphanum", "country-flag", "subdivision-flag"}
HELD_OUT_NAMES, HELD_OUT_PAIRS = 0.04, 0.04


@dataclass(frozen=True)
class Emoji:
    """What is depicted: "waving hand" of the group "people & body" and the kind "hand".

    `tone` is such as "dark skin tone", or empty. `split` follows from name and style.
    """

    name: str
    group: str
    kind: str
    tone: str
    style: str

    @property
    def split(self) -> str:
        """Return "train", "name" (held out in all styles) or "pair" (held out in this style)."""
        if _share(self.name) < HELD_OUT_NAMES:
            return "name"
        return "pair" if _share(f"{self.style}/{self.name}") < HELD_OUT_PAIRS else "train"


@dataclass(frozen=True)
class Pictures:
    """`rgba` [n, 64, 64, 4] uint8, whose colours are not multiplied by alpha, and n `emoji`."""

    rgba: np.ndarray
    emoji: list[Emoji]

    def of(self, split: str) -> Pictures:
        """Return the pictures of a split."""
        rows = [i for i, one in enumerate(self.emoji) if one.split == split]
        return Pictures(self.rgba[rows], [self.emoji[i] for i in rows])


def _share(text: str) -> float:
    """Return a number in [0, 1) that depends on `text` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def code(hexcode: str) -> str:
    """Return a key of an emoji's code points; the sets differ in case and in variation selectors.

    "2764-FE0F" and "2764" are the same emoji.
    """
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def plain(label: str) -> str:
    """Return a label in lower case, as letters, digits, blanks, commas and hyphens only."""
    words = re.sub(r"[’'“”!()\.]", "", label.lower().replace(":", ",").replace("&", "and"))
    return re.sub(r"[^\w,\- ]+", " ", words).strip()


def kind_name(key: str, message: str, order: int) -> str:
    """Return a kind in the plural, such as "mammals" or "faces with glasses"."""
    name = plain(message.split("/")[0])
    if key.startswith("face-"):
        return f"faces {name}" if name.startswith("with ") else f"{name} faces"
    return f"{name} food" if name in {"asian", "cooked"} else name


def read_names(folder: Path) -> dict[str, dict[str, str]]:
    """Return name, group, kind and tone of each emoji that is used, by `code`."""
    entries, messages = packages.NAMES.read_json(folder, "en/data.json", "en/messages.json")
    groups = {g["order"]: g["message"] for g in messages["groups"]}
    # Two kinds of food share a number in this version. The second is right: no emoji has the first.
    kinds = {k["order"]: k for k in messages["subgroups"]}
    found: dict[str, dict[str, str]] = {}
    for entry in entries:
        if "group" not in entry or kinds[entry["subgroup"]]["key"] in LEFT_OUT:
            continue
        facts = {
            "name": plain(entry["label"]),
            "group": plain(groups[entry["group"]]),
            "kind": kind_name(**kinds[entry["subgroup"]]),
        }
        found[code(entry["hexcode"])] = facts | {"tone": ""}
        for skin in entry.get("skins", []):
            if isinstance(skin.get("tone"), int):
                tone = plain(skin["label"].split(": ")[-1])
                found[code(skin["hexcode"])] = facts | {"tone": tone}
    return found


def render(body: str, width: int, height: int) -> Image.Image:
    """Render the body of an SVG of `width` x `height` units as an RGBA image of 64x64 pixels."""
    import resvg_py

    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{SIZE}" height="{SIZE}">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def read_icons(package: packages.Package, folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield `code` and image of each icon of an Iconify package."""
    icons, characters = package.read_json(folder, "icons.json", "chars.json")
    for hexcode, name in tqdm(characters.items(), package.name):
        icon = icons["icons"].get(name)
        alias = {} if icon else icons["aliases"][name]
        icon = icon or icons["icons"][alias["parent"]]
        size = [icon.get(side, icons[side]) for side in ("width", "height")]
        image = render(icon["body"], *size)
        if alias.get("hFlip"):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield code(hexcode), image


def read_images(package: packages.Package, folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield `code` and image of each WebP file of a package, reduced to 64x64 pixels."""
    for name, content in tqdm(package.members(folder), package.name):
        if name.endswith(".webp"):
            image = Image.open(io.BytesIO(content)).convert("RGBA")
            yield code(Path(name).stem), image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def read_all(folder: Path) -> Pictures:
    """Render every picture that has a name from the tarballs in `folder`."""
    names = read_names(folder)
    sources = (
        read_icons(packages.NOTO, folder),
        read_icons(packages.FLUENT_FLAT, folder),
        read_images(packages.FLUENT_3D, folder),
    )
    images, emoji = [], []
    for style, source in zip(STYLES, sources, strict=True):
        for key, image in source:
            if key in names:
                images.append(np.asarray(image))
                emoji.append(Emoji(style=style, **names[key]))
    return Pictures(np.stack(images), emoji)


def load(work: Path) -> Pictures:
    """Return the pictures in `work`; download and render them the first time."""
    pixels, facts = work / "pictures.npy", work / "pictures.json"
    if not facts.exists():
        packages.download(work / "packages")
        made = read_all(work / "packages")
        np.save(pixels, made.rgba)
        text = json.dumps([asdict(one) for one in made.emoji], indent=0)
        temporary = facts.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.rename(facts)
    listed: list[dict[str, Any]] = json.loads(facts.read_text())
    return Pictures(np.load(pixels, mmap_mode="r"), [Emoji(**one) for one in listed])

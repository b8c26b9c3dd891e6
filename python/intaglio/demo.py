"""Draw the same seeds in four guidance modes, as a picture and a page.

Usage: python -m intaglio.demo BUNDLE
"""

from __future__ import annotations

import argparse
import html
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from intaglio import Error, Generation, Pipeline

PROMPTS = ("a dark ankle boot", "a dress", "a light pullover", "a bag", "a sandal", "a dark coat")
SEEDS = (1, 2)
ZOOM = 3
MARGIN = 8
LABEL_WIDTH = 110
# How much the picture of the difference is amplified.
GAIN = 3
LABEL_HEIGHT = 22


@dataclass(frozen=True)
class Mode:
    """A guidance mode: its name and scales, its images by prompt and seed, and what it cost."""

    name: str
    cfg_scale: float
    dg_scale: float
    images: dict[tuple[str, int], Image.Image]
    seconds: float
    rows: int

    @property
    def settings(self) -> str:
        return f"--cfg-scale {self.cfg_scale:g} --dg-scale {self.dg_scale:g}"


def draw_mode(pipeline: Pipeline, name: str, cfg_scale: float, dg_scale: float) -> Mode:
    """Draw every prompt with every seed in one mode."""
    images: dict[tuple[str, int], Image.Image] = {}
    seconds, rows = 0.0, 0
    for prompt in PROMPTS:
        result: Generation = pipeline.generate(
            prompt, seeds=list(SEEDS), cfg_scale=cfg_scale, dg_scale=dg_scale
        )
        seconds += result.timings.denoise
        rows += result.forked_rows
        images |= {(prompt, seed): image for seed, image in zip(SEEDS, result.images, strict=True)}
    return Mode(name, cfg_scale, dg_scale, images, seconds, rows)


def difference(before: Mode, after: Mode, column: tuple[str, int]) -> Image.Image:
    """Return grey plus GAIN times what one picture of `after` changes; grey means no change."""
    first, second = (np.asarray(mode.images[column], np.int16) for mode in (before, after))
    return Image.fromarray((128 + GAIN * (second - first)).clip(0, 255).astype(np.uint8))


def comparison(modes: list[Mode]) -> Image.Image:
    """Return a picture with one row per mode, and one of what DG changes beside CFG.

    It has one column per prompt and seed.
    """
    columns = list(modes[0].images)
    _, cfg, _, both = modes
    rows = {mode.name: [mode.images[column] for column in columns] for mode in modes}
    rows[f"change by DG, {GAIN} x"] = [difference(cfg, both, column) for column in columns]
    width, height = (ZOOM * side for side in modes[0].images[columns[0]].size)
    sheet = Image.new(
        "RGB",
        (
            LABEL_WIDTH + len(columns) * (width + MARGIN) + MARGIN,
            LABEL_HEIGHT + len(rows) * (height + MARGIN) + MARGIN,
        ),
        "white",
    )
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for i, (name, images) in enumerate(rows.items()):
        top = LABEL_HEIGHT + MARGIN + i * (height + MARGIN)
        pen.text((MARGIN, top + height // 2 - 8), name.replace(" by", "\nby"), "black", font)
        for j, image in enumerate(images):
            left = LABEL_WIDTH + MARGIN + j * (width + MARGIN)
            if i == 0 and columns[j][1] == SEEDS[0]:
                pen.text((left, MARGIN), columns[j][0], "black", font)
            sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top))
    return sheet


def sliders(cfg: Mode, both: Mode) -> str:
    """Return one slider for each prompt and seed, with CFG on the left and CFG and DG on the right.

    The keyboard moves it as well.
    """
    return "".join(
        f'<figure><div class="pair"><img src="{file_name(cfg, *column)}" alt="{name}, CFG">'
        f'<img src="{file_name(both, *column)}" alt="{name}, CFG and DG"></div>'
        f'<input type="range" value="50" aria-label="{name}: CFG, then CFG and DG"'
        " oninput=\"this.previousElementSibling.style.setProperty('--x', this.value + '%')\">"
        f"<figcaption>{name}</figcaption></figure>"
        for column in cfg.images
        for name in [html.escape(f"{column[0]}, seed {column[1]}")]
    )


def page(modes: list[Mode], bundle_name: str, backend: str) -> str:
    """Return a page that opens offline, with the picture, the cost of each mode and all images."""
    plain = modes[0].seconds
    costs = "".join(
        f"<tr><td>{mode.name}</td><td><code>{mode.settings}</code></td><td>{mode.rows}</td>"
        f"<td>{mode.seconds:.2f} s</td><td>{mode.seconds / plain:.2f}</td></tr>"
        for mode in modes
    )
    singles = "".join(
        f"<h3>{mode.name}</h3>"
        + "".join(
            f'<img src="{file_name(mode, *column)}" width="96"'
            f' alt="{html.escape(column[0])}, seed {column[1]}, {mode.name}"'
            f' title="{html.escape(column[0])}, seed {column[1]}">'
            for column in mode.images
        )
        for mode in modes
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Detail Guidance on {html.escape(bundle_name)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: auto; padding: 1rem }}
img {{ max-width: 100% }} img[width] {{ image-rendering: pixelated; margin: 0 4px 4px 0 }}
figure {{ display: inline-block; width: 16rem; margin: 0 1rem 1rem 0 }}
.pair {{ position: relative }} figure img, figure input {{ display: block; width: 100% }}
.pair img {{ image-rendering: pixelated }}
.pair img + img {{ position: absolute; top: 0; clip-path: inset(0 0 0 var(--x, 50%)) }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem 1rem .2rem 0; text-align: left }}
</style>
<h1>The same seeds in four guidance modes</h1>
<p>{html.escape(bundle_name)} on {html.escape(backend)}.
D = D_c + lambda (D_c - D_0) + w (D_c - D_m), cfg scale = 1 + lambda, dg scale = w.</p>
<img src="comparison.png" alt="Rows: baseline, CFG, DG, CFG+DG, what DG changes. Columns: prompts.">
<h2>CFG on the left, CFG and DG on the right</h2>
{sliders(modes[1], modes[3])}
<h2>Cost of each mode</h2>
<table><tr><th>mode</th><th>flags</th><th>rows through the last block</th><th>denoising</th>
<th>relative to baseline</th></tr>{costs}</table>
<h2>Single images</h2>
{singles}
</html>
"""


def file_name(mode: Mode, prompt: str, seed: int) -> str:
    """Return the name of one image in the output folder."""
    words = [*prompt.replace(",", "").split(), str(seed), *mode.name.lower().split("+")]
    return f"{'-'.join(words)}.png"


def main() -> int:
    """Run the command line, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="folder that `intaglio export` wrote")
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), help="folder to write")
    args = parser.parse_args()
    try:
        write_demo(Pipeline.open(args.bundle), args.output)
    except Error as error:
        print(f"intaglio: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def write_demo(pipeline: Pipeline, output: Path) -> None:
    """Draw all modes, and write the page last, so that a page never lacks pictures."""
    guidance = pipeline.bundle.defaults.guidance
    cfg, dg = guidance.cfg_scale.first, guidance.dg_scale.first
    settings = {"baseline": (1.0, 0.0), "CFG": (cfg, 0.0), "DG": (1.0, dg), "CFG+DG": (cfg, dg)}
    modes = [draw_mode(pipeline, name, *scales) for name, scales in settings.items()]

    output.mkdir(parents=True, exist_ok=True)
    for mode in modes:
        for column, image in mode.images.items():
            image.save(output / file_name(mode, *column))
    comparison(modes).save(output / "comparison.png")
    lines = [
        f"{m.name:10}{m.settings:32}{m.seconds:6.2f} s  {m.seconds / modes[0].seconds:.2f} x"
        for m in modes
    ]
    files = {"page": "index.html", "picture": "comparison.png", "singles": "*.png"}
    paths = [f"{what:10}{output / name}" for what, name in files.items()]
    (output / "summary.txt").write_text("\n".join(lines + paths) + "\n", "utf-8")
    text = page(modes, pipeline.bundle.name, pipeline.backend)
    (output / "index.html").write_text(text, "utf-8")


if __name__ == "__main__":
    sys.exit(main())

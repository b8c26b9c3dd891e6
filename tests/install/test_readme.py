"""README's quick start after `make demo`, in a fresh environment that has the published wheel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import intaglio
from tests.install.conftest import DIST, ROOT, WHEELS


def quick_start() -> list[str]:
    """The code blocks of the section."""
    section = (ROOT / "README.md").read_text("utf-8").split("## Quick start")[1].split("\n## ")[0]
    return re.findall(r"^```\n(.*?)^```$", section, re.M | re.S)


def test_the_quick_start_draws(tmp_path: Path) -> None:
    demo, draw = quick_start()[:2]
    assert demo.startswith("make demo ")  # which CI runs in the checkout
    subprocess.run([sys.executable, "-m", "venv", tmp_path / ".venv"], check=True)
    (wheel,) = DIST.glob("intaglio-*.whl")
    pip = [tmp_path / ".venv/bin/python", "-m", "pip", "install", "-q", "--no-index"]
    subprocess.run([*pip, "--find-links", WHEELS, wheel], check=True)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "bundles").symlink_to(ROOT / "build" / "bundles")
    environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"]}
    subprocess.run(["bash", "-eu", "-c", draw], cwd=tmp_path, env=environment, check=True)

    prompt = re.search(r'--prompt "(.*?)"', draw)
    assert prompt
    scales = {f"{kind}_scale": float(number)
              for kind, number in re.findall(r"--(\w+)-scale (\S+)", draw)}  # fmt: skip
    with Image.open(tmp_path / "boot.png") as drawn:
        pipeline = intaglio.Pipeline.open(ROOT / "build" / "bundles" / "fashion-sd3")
        (seed,) = json.loads(drawn.text["intaglio:options"])["seeds"]
        here = pipeline.generate(prompt[1], seeds=seed, **scales).images[0]
        assert np.array_equal(np.asarray(drawn), np.asarray(here))

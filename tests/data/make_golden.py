"""Writes tests/data/golden: what torch, diffusers and transformers answer, for the C++ tests.

Run in the repository's folder with torch 2.13, diffusers 0.42 and transformers 5.23:

    PYTHONPATH=. python tests/data/make_golden.py

prompts.txt holds one prompt a line, with JSON's escapes (\\n, \\u0301, \\", \\\\).
"""

from __future__ import annotations

import base64
import json
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, CLIPTokenizer, T5Tokenizer

from intaglio_export.bundle.byte_level_table import byte_level_table
from intaglio_export.bundle.tokenizer_tables import clip_table, t5_table
from tests.byte_level import mistral_like

DATA = Path(__file__).parent
GOLDEN = DATA / "golden"
EULER = "FlowMatchEulerDiscreteScheduler"
HEUN = "FlowMatchHeunDiscreteScheduler"
DPM = "DPMSolverMultistepScheduler"
DDIM = "DDIMScheduler"
STEPS = (1, 2, 3, 5, 10, 28, 50)
TOKENS = 1400
LENGTHS = {"clip_l": 77, "clip_g": 16, "gaps": 12, "t5": 64, "byte_level": 48}  # as in C++
SPECIALS = ("<|startoftext|>", "<|endoftext|>")


def numbers(values) -> list[float]:
    """The shortest decimals that give the same float32."""
    return [float(str(np.float32(value))) for value in np.asarray(values).ravel()]


def write(name: str, content) -> None:
    lines = ",\n".join(json.dumps(entry, ensure_ascii=True) for entry in content)
    (GOLDEN / name).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def noise() -> None:
    """Successive draws from one generator: short ones share a cached second normal."""
    sizes = {
        0: list(range(1, 41)),
        42: [3, 16, 3, 17, 1, 31, 2, 1, 15, 33, 1],
        2**31: [256],
        2**32: [1, 7, 16],
        2**32 + 5: [9, 20],
        2**63 - 1: [5, 18],
        2**64 - 1: [2, 1, 40, 1],
    }
    draws = []
    for seed, lengths in sizes.items():
        generator = torch.Generator("cpu").manual_seed(seed)
        values = [numbers(torch.randn(length, generator=generator)) for length in lengths]
        draws.append({"seed": seed, "draws": values})
    write("noise.json", draws)
    generator = torch.Generator("cpu").manual_seed(1234)
    np.save(GOLDEN / "noise_batch.npy", torch.randn(3, 4, 16, 16, generator=generator).numpy())
    each = [
        torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(s)) for s in (5, 6)
    ]
    np.save(GOLDEN / "noise_each.npy", torch.cat(each).numpy())


def make_scheduler(config: dict):
    """A diffusers scheduler from the fields of SchedulerConfig."""
    ours = ("type", "prediction_type", "linspace_sigmas")
    options = {key: value for key, value in config.items() if key not in ours}
    if config["type"] == DDIM:
        return DDIMScheduler(clip_sample=False, **options)
    if config["type"] == DPM and config.get("prediction_type") == "epsilon":
        return DPMSolverMultistepScheduler(**options)
    if config["type"] == EULER:
        return FlowMatchEulerDiscreteScheduler(**options)
    if config["type"] == HEUN:
        return FlowMatchHeunDiscreteScheduler(**options)
    options["flow_shift"] = options.pop("shift", 1.0)
    return DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", **options
    )


def set_timesteps(scheduler, config: dict, steps: int, image_seq_len: int):
    """As StableDiffusion3Pipeline does, or FluxPipeline."""
    if config.get("linspace_sigmas"):
        sigmas = np.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=calculate_shift(image_seq_len))
    elif config.get("use_dynamic_shifting"):
        scheduler.set_timesteps(steps, mu=calculate_shift(image_seq_len))
    else:
        scheduler.set_timesteps(steps)


def noise_levels(scheduler, config: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Alphas and sigmas of every step, and those that the run ends with."""
    if config["type"] == DDIM:
        products = scheduler.alphas_cumprod[scheduler.timesteps]
        end = scheduler.timesteps[-1] - scheduler.config.num_train_timesteps // len(products)
        last = scheduler.alphas_cumprod[end] if end >= 0 else scheduler.final_alpha_cumprod
        products = torch.cat([products, last[None]])
        return products**0.5, (1 - products) ** 0.5
    sigmas = scheduler.sigmas
    if config["type"] == HEUN:
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
    if config.get("prediction_type") == "epsilon":
        return scheduler._sigma_to_alpha_sigma_t(sigmas)
    return 1 - sigmas, sigmas


VARIANCE_PRESERVING = [
    {"type": DDIM},
    {"type": DDIM, "set_alpha_to_one": False, "beta_schedule": "scaled_linear", "beta_end": 0.012},
    {"type": DDIM, "timestep_spacing": "linspace", "set_alpha_to_one": False},
    {"type": DDIM, "timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2"},
    {"type": DPM},
    {"type": DPM, "timestep_spacing": "leading", "steps_offset": 1},
    {"type": DPM, "timestep_spacing": "trailing", "num_train_timesteps": 400},
]
for entry in VARIANCE_PRESERVING:
    entry["prediction_type"] = "epsilon"


def schedules() -> None:
    """Sigmas and timesteps; Heun's inner ones once, since a Schedule holds one entry a step."""
    configs = [{"type": kind, "shift": s} for kind in (EULER, HEUN, DPM) for s in (1.0, 3.0, 0.6)]
    dynamic = {"use_dynamic_shifting": True, "shift": 3.0}
    configs += [
        {"type": EULER, **dynamic},
        {"type": EULER, **dynamic, "time_shift_type": "linear"},
        {"type": EULER, **dynamic, "shift_terminal": 0.1},
        {"type": EULER, "shift": 3.0, "shift_terminal": 0.02},
        {"type": EULER, "shift": 3.0, "num_train_timesteps": 400},
        {"type": DPM, **dynamic},
        {"type": EULER, "linspace_sigmas": True},
        {"type": EULER, "linspace_sigmas": True, **dynamic},
        {"type": EULER, "linspace_sigmas": True, **dynamic, "shift_terminal": 0.02},
        *VARIANCE_PRESERVING,
    ]
    cases = []
    for config in configs:
        for steps in STEPS:
            if config.get("shift_terminal") and steps == 1:
                continue  # diffusers divides zero by zero
            for image_seq_len in (64, 4096) if config.get("use_dynamic_shifting") else (64,):
                scheduler = make_scheduler(config)
                set_timesteps(scheduler, config, steps, image_seq_len)
                alphas, sigmas = noise_levels(scheduler, config)
                timesteps = scheduler.timesteps
                if config["type"] == HEUN:
                    timesteps = torch.cat([timesteps[:1], timesteps[1::2]])
                cases.append(
                    {
                        "config": config,
                        "steps": steps,
                        "image_seq_len": image_seq_len,
                        "alphas": numbers(alphas),
                        "sigmas": numbers(sigmas),
                        "timesteps": numbers(timesteps),
                    }
                )
    write("schedules.json", cases)


def velocity(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A model with some curvature; test_sampling.cpp has the same."""
    t = timestep.float() / 1000
    return torch.sin(3 * x) + t * x - 0.5 * torch.cos(2 * t)


def epsilon(x: torch.Tensor, timestep: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
    """One that knows about the noise level; test_sampling.cpp has the same."""
    alpha, sigma = products[timestep] ** 0.5, (1 - products[timestep]) ** 0.5
    return sigma * x + 0.3 * alpha * torch.sin(2 * x + timestep.float() / 300)


def predict(config: dict, scheduler, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    if config.get("prediction_type") == "epsilon":
        return epsilon(x, timestep, scheduler.alphas_cumprod)
    return velocity(x, timestep)


def runs() -> None:
    """Whole runs of the real scheduler objects; `begin` > 0 is image-to-image."""
    start = torch.randn(16, generator=torch.Generator("cpu").manual_seed(3))
    cases = []
    configs = [{"type": kind, "shift": s} for kind in (EULER, HEUN, DPM) for s in (1.0, 3.0)]
    for config in configs + VARIANCE_PRESERVING:
        for steps, begin in [(n, 0) for n in STEPS] + [(10, 4), (28, 27)]:
            scheduler = make_scheduler(config)
            scheduler.set_timesteps(steps)
            if config["type"] != DDIM:
                scheduler.set_begin_index(begin * scheduler.order)
            x = start.clone()
            called = scheduler.timesteps[begin * scheduler.order :]
            for timestep in called:
                model = predict(config, scheduler, x, timestep)
                x = scheduler.step(model, timestep, x, return_dict=False)[0]
            cases.append(
                {
                    "config": config,
                    "steps": steps,
                    "begin": begin,
                    "timesteps": numbers(called),
                    "start": numbers(start),
                    "end": numbers(x),
                }
            )
    write("runs.json", cases)


def prompts() -> list[str]:
    lines = (DATA / "prompts.txt").read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(f'"{line}"') for line in lines]


def vocabulary(texts: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A small byte-level BPE, laid out as CLIP's: bytes, bytes that end a word, merges, specials.

    Kept once made: training breaks ties differently each time.
    """
    kept = GOLDEN / "clip_l.json"
    if kept.exists():
        made = json.loads(kept.read_text(encoding="utf-8"))
        return made["vocab"], [tuple(merge.split(" ")) for merge in made["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [symbol + "</w>" for symbol in alphabet]
    pipeline = CLIPTokenizer(vocab={s: i for i, s in enumerate(SPECIALS)}).backend_tokenizer
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = pipeline.normalizer
    trained.pre_tokenizer = pipeline.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    tokens += ["".join(merge) for merge in merges] + list(SPECIALS)
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


def tokenizers() -> dict[str, CLIPTokenizer]:
    """The kinds in use: CLIP-L pads with its end token, CLIP-G with "!"; and one with few bytes."""
    vocab, merges = vocabulary(prompts())
    start = AddedToken("<|startoftext|>", normalized=True, special=True)
    few = [token for token in vocab if len(token) == 1 and token.isascii()]
    few += [symbol + "</w>" for symbol in "abcdefghijklmnopqrs"] + [
        "an",
        "ar",
        "ark</w>",
        "k</w>",
        "and</w>",
    ]
    gaps = {token: i for i, token in enumerate([*few, *SPECIALS])}
    few_merges = [("a", "n"), ("a", "r"), ("ar", "k</w>"), ("an", "d</w>")]
    return {
        "clip_l": CLIPTokenizer(vocab=dict(vocab), merges=merges),
        "clip_g": CLIPTokenizer(vocab=dict(vocab), merges=merges, pad_token="!", bos_token=start),
        "gaps": CLIPTokenizer(vocab=gaps, merges=few_merges),
    }


def t5_tokenizer() -> T5Tokenizer:
    """A small Unigram vocabulary, and a character map with few rules: the real one is long.

    Kept once made, as the byte-pair vocabulary is.
    """
    kept = GOLDEN / "t5.json"
    if kept.exists():
        made = json.loads(kept.read_text(encoding="utf-8"))
        vocab = list(zip(made["pieces"], made["scores"], strict=True))
        charsmap = base64.b64decode(made["normalizers"][0]["charsmap"])
        return T5Tokenizer(vocab=vocab, _spm_precompiled_charsmap=charsmap)
    changed = {c: unicodedata.normalize("NFKC", c) for c in map(chr, range(0xA0, 0x2200))}
    rules = {"e\u0301": "é", "ﬁ": "fi", "\u3000": " ", "\t": " ", "\n": " ", "\u00ad": ""}
    rules |= {c: to for c, to in changed.items() if c != to}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rules.tsv")
        lines = [
            "\t".join(" ".join(f"{ord(c):X}" for c in s) for s in rule) for rule in rules.items()
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(t for t in prompts() * 3 if t.strip() and max(t) < "\u0500"),
            model_prefix=f"{folder}/spiece",
            vocab_size=500,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            character_coverage=0.98,
            normalization_rule_tsv=str(path),
            hard_vocab_limit=False,
            minloglevel=2,
        )
        return T5Tokenizer.from_pretrained(folder)


def without_padding(ids: list[int], pad: int) -> list[int]:
    """Keeps one padding id; the reader repeats the last id up to the length."""
    while len(ids) > 1 and ids[-1] == ids[-2] == pad:
        ids = ids[:-1]
    return ids


def tokens() -> None:
    texts = [*prompts(), "a" * 3000, "ab'" * 1000, "e" + "\u0301" * 400, " " * 2000, "x!" * 800]
    cases = [{"text": text} for text in texts]
    made = tokenizers() | {"t5": t5_tokenizer(), "byte_level": mistral_like()}
    tables = {"t5": t5_table, "byte_level": byte_level_table}
    for name, tokenizer in made.items():
        content = tables.get(name, clip_table)(tokenizer, 77)
        table = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
        (GOLDEN / f"{name}.json").write_text(table + "\n", encoding="utf-8")
        for case in cases:
            ids = tokenizer(
                case["text"], padding="max_length", max_length=LENGTHS[name], truncation=True
            ).input_ids
            case[name] = without_padding(ids, tokenizer.pad_token_id)
    write("tokens.json", cases)


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    noise()
    schedules()
    runs()
    tokens()


if __name__ == "__main__":
    main()

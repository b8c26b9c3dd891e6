"""Z-Image."""

import torch

import intaglio
from tests.families import FAMILIES
from tests.parity.diffusers_runs import HEIGHT, NEGATIVE, STEPS
from tests.parity.family import LIMITS, SEEDS, Export, FamilyParity, relative

# 47 and 16 tokens with the template, which the model fills up to 64 and 32.
PROMPTS = ["a photograph of the red dress and the dark shirt in the rest of it, 1999", "a boot"]


class TestZImage(FamilyParity):
    name = "z-image"

    def test_two_prompts_of_different_lengths_in_one_batch(self, bundle: Export) -> None:
        size = {"height": HEIGHT, "width": self.family.width}
        expected = (
            FAMILIES[self.name]
            .make()(
                list(PROMPTS),
                negative_prompt=[NEGATIVE] * 2,
                guidance_scale=3.0,
                num_inference_steps=STEPS,
                generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
                output_type="latent",
                **size,
                **self.family.call,
            )
            .images
        )
        batch = intaglio.Batch(bundle("forked", "float32"))
        for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
            batch.add(
                prompt=prompt,
                negative_prompt=NEGATIVE,
                seeds=seed,
                steps=STEPS,
                cfg_scale=4.0,
                dg_scale=0.0,
                **size,
            )
        made = {}
        while len(batch):
            made |= {step.id: step.finish() for step in batch.step() if step.done}
        for (_, got), latents in zip(sorted(made.items()), expected, strict=True):
            assert relative(got.latents, latents.unsqueeze(0)) < LIMITS["float32"]

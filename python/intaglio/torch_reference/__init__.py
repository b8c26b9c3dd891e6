"""The reference in torch: a diffusers model, sampled with up to three guidance branches a step.

`intaglio.analysis`, `intaglio.diffusers` and `models.training` share it (docs/decisions/0020). It
needs the extra `export`; `import intaglio` does not import it.
"""

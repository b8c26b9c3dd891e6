"""Investigates massive activations and Detail Guidance on a diffusers model; needs the extra probe.

The command is `intaglio probe`. `import intaglio` does not import this package.
"""

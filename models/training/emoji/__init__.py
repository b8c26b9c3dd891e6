"""Training of emoji-sd3, a model of 64x64 pictures in colour.

The stages, in the order in which `train.py` runs them: `packages.py` downloads the emoji sets,
`pictures.py` renders them, `captions.py` describes them, `compose.py` puts them on backgrounds,
`autoencoder.py` compresses them, and `train.py` trains the transformer, which `watch.py` observes.
What the shipped fashion model needs as well is in the folder above.
"""

"""TensorRT engines for the graphs of a bundle, built with or without a GPU in the machine.

The command is `intaglio build` (`intaglio_export.engines.cli.build`); the same from Python is
`intaglio_export.engines.builder.build_engines`. Needs neither torch nor diffusers.
"""

"""`intaglio probe`: a diffusers model or an observed bundle, from end to end."""

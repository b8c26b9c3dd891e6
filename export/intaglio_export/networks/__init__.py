"""The modules that become graphs: the transformer in its layouts, text encoders and the VAE."""

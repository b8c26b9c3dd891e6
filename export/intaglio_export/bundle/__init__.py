"""The files of a bundle: graphs, tokenizer tables and the manifest, written and verified."""

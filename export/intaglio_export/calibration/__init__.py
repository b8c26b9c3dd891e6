"""Which channels of a model are massive, and which block and channels a bundle suppresses."""

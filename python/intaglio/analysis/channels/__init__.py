"""Which channels are massive, what causes them, and the statistics behind the answers."""

"""Guidance methods of the literature beside Detail Guidance, at equal cost and best scale each."""

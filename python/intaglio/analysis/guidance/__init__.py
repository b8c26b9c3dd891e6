"""Negative branches besides Detail Guidance, effective guidance, and settings as methods."""

"""What low precision costs the shipped model in quality, beside its pictures."""

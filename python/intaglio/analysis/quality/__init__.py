"""Measures of pictures and of sets of features, their intervals, and the judge."""

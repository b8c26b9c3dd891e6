"""What the researcher's commands measure; needs the extra `probe`."""

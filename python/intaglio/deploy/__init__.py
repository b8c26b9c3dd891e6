"""Turns a bundle into what another machine or a server runs."""

"""Connections, HTTP middleware and API keys."""

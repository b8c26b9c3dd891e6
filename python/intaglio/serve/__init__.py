"""Serve bundles: OpenAI's image endpoint, jobs with events, and a page (docs/serving.md)."""

"""Serving of finished weights behind an OpenAI-compatible API."""

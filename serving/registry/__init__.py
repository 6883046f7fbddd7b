"""Registered checkpoints: which is served, why, and what was decided on the way."""

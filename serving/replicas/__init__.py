"""Engines behind gates of their own, and who tells them which version to serve."""

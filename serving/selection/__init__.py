"""Inference-time selection among several answers."""

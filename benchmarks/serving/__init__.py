"""Measurements of the server: malformed requests, overhead, swaps under load."""

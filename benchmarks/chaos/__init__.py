"""Faults on purpose: a protocol harness with light workers, real processes under kills, recovery times."""

"""Served under constant load while replicas are killed and versions change: what clients see, and why."""

"""What a run shows: a self-contained report page and the terminal's tables."""

from pipelines.report.page import render

__all__ = ["render"]

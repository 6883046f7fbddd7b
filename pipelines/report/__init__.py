"""What a run shows: a self-contained report page, the terminal's tables, and an independent recount."""

from pipelines.report.audit import recount
from pipelines.report.page import render

__all__ = ["recount", "render"]

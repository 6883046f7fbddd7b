"""What a run shows: one self-contained report page, the terminal's final table, and an independent recount."""

from pipelines.report.audit import recount
from pipelines.report.page import render

__all__ = ["recount", "render"]

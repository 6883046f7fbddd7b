"""What people think of answers, kept durably for later alignment; `pipelines.data.served` owns the format."""

from __future__ import annotations

from serving.feedback.redaction import load_redaction
from serving.feedback.store import FeedbackStore

__all__ = ["FeedbackStore", "load_redaction"]

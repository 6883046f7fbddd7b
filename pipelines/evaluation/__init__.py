"""Held-out evaluation: hallucination measures with intervals, before against after on the same items."""

from pipelines.evaluation.bootstrap import Interval, paired_mean
from pipelines.evaluation.metrics import compare, heldout
from pipelines.evaluation.records import KINDS, QUESTION_KINDS, BadRecord, Record, read_records

__all__ = [
    "KINDS",
    "QUESTION_KINDS",
    "BadRecord",
    "Interval",
    "Record",
    "compare",
    "heldout",
    "paired_mean",
    "read_records",
]

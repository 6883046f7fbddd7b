"""Media of requests: fetched where that is allowed, decoded elsewhere, handed on as clean data URLs."""

from __future__ import annotations

from serving.media.cleaning import BadMedia, clean
from serving.media.damaging import damage
from serving.media.pool import MediaPool
from serving.media.remote import Fetcher

__all__ = ["BadMedia", "Fetcher", "MediaPool", "clean", "damage"]

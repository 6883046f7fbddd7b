"""Chunks that come fast travel together: to cross from process to process costs more than to make a token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from actors.guards import cancel

T = TypeVar("T")


async def together(items: AsyncGenerator[T, None], every_s: float) -> AsyncGenerator[list[T], None]:
    """Lists of what came since the list before: the first item at once, then at most one list each `every_s`.

    Nothing waits for what may come: items further apart than `every_s` come as they are, and so does the end.
    What `items` raises is raised after what it gave. Closing this closes `items`.
    """
    held: list[T] = []
    news = asyncio.Event()  # an item, or the end

    async def take() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    held.append(item)
                    news.set()
        finally:
            news.set()

    taking = asyncio.create_task(take())
    try:
        while held or not taking.done():
            await news.wait()
            news.clear()
            if held:
                some = held.copy()
                held.clear()
                yield some
                await asyncio.wait({taking}, timeout=every_s)
        taking.result()
    finally:
        await cancel([taking])

"""From cells of comparisons to rows of a forward, each checked for what it shows and what it answers."""

from __future__ import annotations

from collections.abc import Sequence

from actors import sight
from actors.forward import Row, blank_row
from actors.processing import Encoded, Processing
from pipelines.objectives.batch import Table
from pipelines.types import Canary, Comparison, MediaTable, Prompt, Response

PROBED = 4  # comparisons per rank whose reliance on images is probed when no edge differs in media


class Rows:
    """Encodes prompts and answers; `digest_mismatches` counts prompts that showed other pictures."""

    def __init__(self, processing: Processing) -> None:
        self.processing = processing
        self.digest_mismatches = 0
        self._blank = blank_row(processing)

    def of(self, table: Table, media: MediaTable) -> list[Row]:
        """One row per cell, and the blank row where the micro-batch would leave modules unused."""
        shown: dict[str, Encoded] = {}
        rows: list[Row] = []
        for cell in table.cells:
            if cell.prompt.digest not in shown:
                shown[cell.prompt.digest] = self._encode(cell.prompt, media)
            rows.append(self._row(cell.prompt, shown[cell.prompt.digest], cell.response))
        return self.padded(rows)

    def of_canary(self, canary: Canary) -> list[Row]:
        """The canary's row comes first."""
        return self.padded([Row(self._encode(canary.prompt, canary.media), canary.tokens)])

    def with_and_without_media(self, comparisons: Sequence[Comparison], media: MediaTable) -> list[Row]:
        """Pairs of rows, the first cell with media of a few comparisons and the same with gray pictures."""
        rows: list[Row] = []
        for comparison in comparisons:
            cells = [(comparison.prompts[c.prompt], c.response) for c in comparison.candidates]
            prompt, response = next(((p, r) for p, r in cells if p.media), (None, 0))
            if prompt is None or len(rows) == 2 * PROBED:
                continue
            gray, table = sight.blanked(prompt, media)
            if gray.digest != prompt.digest:
                answer = comparison.responses[response]
                rows.append(self._row(prompt, self._encode(prompt, media), answer))
                rows.append(self._row(gray, self._encode(gray, table), answer))
        return rows

    def _encode(self, prompt: Prompt, media: MediaTable) -> Encoded:
        """What the model is shown, checked against what the comparison says."""
        encoded = self.processing.encode(prompt, media)
        try:
            sight.require_seen(prompt, encoded)
        except sight.SightMismatch:
            self.digest_mismatches += 1
            raise
        return encoded

    def _row(self, prompt: Prompt, encoded: Encoded, response: Response) -> Row:
        where = f"prompt {prompt.id!r} ({prompt.origin})"
        sight.require_answer(response, self.processing, where)
        self.processing.require_fit(len(encoded.input_ids), len(response.tokens), where)
        return Row(encoded, response.tokens, response.scored)

    def padded(self, rows: list[Row]) -> list[Row]:
        """With the blank row behind them where they would leave modules unused."""
        seen = any(row.encoded.pixel_values is not None for row in rows)
        needed = not rows or (self.processing.has_vision and not seen)
        return [*rows, self._blank] if needed else rows

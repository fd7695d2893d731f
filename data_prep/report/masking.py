"""What of a text may be shown where the pipeline masks personal data: the text as that stage leaves it.

Texts of before the stage are masked by its own finder, whole, before anything is cut out of them. What the stage then
masked in a document is also looked for letter by letter, wherever else the document's page shows text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.report import excerpts
from data_prep.report.excerpts import Excerpt
from data_prep.report.lives import Change, Life, Span, edited
from data_prep.report.trace import Trace

STAGE = "privacy"


@dataclass(frozen=True)
class Masked:
    """A text with masks in it, and where a place of the text before them is in it."""

    text: bytes
    spans: tuple[Span, ...] = ()

    @staticmethod
    def of(text: bytes, spans: Sequence[Span]) -> "Masked":
        return Masked(edited(text, spans), tuple(spans))

    def place(self, position: int, end: bool = False) -> int:
        """Of a place inside of a mask the mask's beginning, or its end."""
        shift = 0
        for start, stop, new in self.spans:
            size = len(new.encode())
            if position >= stop:
                shift += size - (stop - start)
            elif position > start:
                return start + shift + (size if end else 0)
            else:
                break
        return position + shift

    def moved(self, edits: Sequence[Span]) -> list[Span]:
        """Edits of the text as edits of the masked one."""
        return [(self.place(start), self.place(stop, end=True), new) for start, stop, new in edits]


class Masks:
    """Texts of documents as they may be shown; None for those that may not."""

    def __init__(self, trace: Trace):
        self.needed = trace.config.privacy is not None

    def masked(self, life: Life, text: bytes) -> Masked | None:
        return None if self.needed else Masked(text)

    def text(self, life: Life, step: int, most: int) -> Excerpt | None:
        """The beginning of the text that a step saw."""
        found = self.masked(life, life.before(step))
        return excerpts.head(found.text, most) if found is not None else None

    def changes(self, life: Life, change: Change) -> Excerpt | None:
        found = self.masked(life, change.before)
        return excerpts.changes(found.text, found.moved(change.edits)) if found is not None else None

    def name(self, life: Life, whole: bool = False) -> dict[str, Any]:
        """Id and address, short ones unless `whole`."""
        found = {"id": life.id, "url": life.url}
        return found if whole else {key: one and excerpts.shortened(one) for key, one in found.items()}

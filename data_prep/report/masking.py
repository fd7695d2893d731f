"""What of a document may be shown where the pipeline masks personal data: its text as that stage leaves it.

Texts of before the stage are masked by its own finder, whole, before anything is cut out of them, and so are ids and
addresses; types that the stage would drop a document for are masked too. Languages that the stage leaves alone are no
exception, as those of a document are not known at every stage; sources that it leaves alone are shown as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data_prep.config import Pipeline
from data_prep.privacy.find import Numbering, everywhere, in_texts, scanner
from data_prep.privacy.mask import hidden_id, is_chosen
from data_prep.privacy.stage import STAGE
from data_prep.report import excerpts
from data_prep.report.excerpts import Excerpt
from data_prep.report.lives import Change, Life, Span, edited
from data_prep.report.trace import Trace
from data_prep.text.texts import Texts


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


def joined(spans: Sequence[Span]) -> list[Span]:
    """Spans in order, of those that overlap the union with the mask of the first."""
    found: list[Span] = []
    for start, stop, new in sorted(spans):
        if found and start < found[-1][1]:
            first, last, mask = found.pop()
            start, stop, new = first, max(last, stop), mask
        found.append((start, stop, new))
    return found


class Masks:
    """Documents as they may be shown by a pipeline; without the section privacy, as they are."""

    def __init__(self, trace: Trace):
        self.config: Pipeline = trace.config
        steps = [number for number, step in enumerate(trace.steps) if step.stage == STAGE]
        self.step = steps[0] if steps else None

    @cached_property
    def _scanner(self) -> Any:
        return scanner(tuple(sorted(self.config.privacy.phone_regions)))

    def _concerns(self, life: Life) -> bool:
        privacy = self.config.privacy
        return privacy is not None and (privacy.sources is None or life.part.source in privacy.sources)

    def spans(self, values: Mapping[str, bytes]) -> dict[str, list[Span]]:
        """What to mask in the values of one document, which are by place; a value of one place goes from all."""
        privacy = self.config.privacy
        scanned = in_texts(self._scanner, Texts.from_strings([value.decode() for value in values.values()]))
        found = everywhere(values, {place: scanned.get(number, []) for number, place in enumerate(values)})
        numbering = Numbering()
        masks: dict[str, list[Span]] = {}
        for place, spans in found.items():
            for span in spans:
                if is_chosen(span.type, span.kind, privacy):
                    mask = privacy.fill(span.type, numbering.of(values[place], span))
                    masks.setdefault(place, []).append((span.start, span.stop, mask))
        return masks

    def masked(self, life: Life, text: bytes) -> Masked:
        """One of the texts that the document had."""
        if not self._concerns(life):
            return Masked(text)
        spans = self.spans({"text": text} | _beside(life)).get("text", [])
        own = next((change for change in life.changes if change.step == self.step), None)
        if own is not None and text == own.before:
            spans = [*own.edits, *spans]
        return Masked.of(text, joined(spans))

    def line(self, text: str) -> str:
        """A short text that no document is known of."""
        if self.config.privacy is None:
            return text
        return edited(text.encode(), self.spans({"text": text.encode()}).get("text", [])).decode()

    def beside(self, life: Life) -> dict[str, str | None]:
        """Id, url and origin, the file that a document was read from. An id is as the stage left it or, where the
        document did not come as far, as it would have."""
        values, masks = _beside(life), {}
        if self._concerns(life):
            masks = self.spans({"text": life.text} | values)
        found = {place: edited(value, masks.get(place, ())).decode() for place, value in values.items()}
        # Of a document that was dropped before the stage, the column has the id as it was read.
        if (replaced := life.replaced.get("id")) not in (None, life.id):
            found["id"] = replaced
        elif found["id"] != life.id:
            found["id"] = hidden_id(life.id)
        return {"id": found["id"], "url": found.get("url"), "origin": found.get("origin")}

    def text(self, life: Life, step: int, most: int, places: Sequence[tuple[int, int]] = ()) -> Excerpt:
        """The text that a step saw: what is around the places for which it dropped the document, or the beginning."""
        found = self.masked(life, life.before(step))
        if step == self.step:
            places = [(start, stop) for start, stop, _ in found.spans]
        if not places:
            return excerpts.head(found.text, most)
        moved = found.moved([(start, stop, "") for start, stop in places])
        return excerpts.around(found.text, [(start, stop) for start, stop, _ in moved])

    def changes(self, life: Life, change: Change) -> Excerpt:
        found = self.masked(life, change.before)
        if change.step != self.step:
            return excerpts.changes(found.text, found.moved(change.edits))
        # Nothing is shown in the place of what was masked but the placeholders.
        bare, added, shift = edited(change.before, [(start, stop, "") for start, stop, _ in found.spans]), [], 0
        for start, stop, new in found.spans:
            added.append((start - shift, start - shift, new))
            shift += stop - start
        return excerpts.changes(bare, added)

    def name(self, life: Life) -> dict[str, Any]:
        """Id and address, in short."""
        found = self.beside(life)
        return {key: found[key] and excerpts.shortened(found[key]) for key in ("id", "url")}


def _beside(life: Life) -> dict[str, bytes]:
    values = {"id": life.id, "url": life.url, "origin": dict(life.steps).get("ingest")}
    return {place: value.encode() for place, value in values.items() if value}

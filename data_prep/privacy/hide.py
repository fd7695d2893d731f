"""Values that stand outside of documents: in ids and samples that a report quotes."""

import json
import re
from dataclasses import dataclass

from data_prep.config import Selection
from data_prep.privacy.find import Numbering, in_texts, scanner
from data_prep.privacy.mask import filled, hidden_id, is_chosen
from data_prep.text.texts import Texts

STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class Hiding:
    """Masks texts by the rules of a pipeline, whatever language they are in."""

    config: Selection

    def text(self, text: str) -> str:
        """A text with placeholders."""
        privacy = self.config.privacy
        if privacy is None:
            return text
        spans = in_texts(scanner(tuple(sorted(privacy.phone_regions))), Texts.from_strings([text])).get(0, [])
        numbering = Numbering()
        entries = [
            {"type": span.type, "start": span.start, "stop": span.stop, "number": numbering.of(text.encode(), span)}
            for span in spans
            if is_chosen(span.type, span.kind, privacy)
        ]
        return filled(text, entries, privacy)

    def id(self, document_id: str) -> str:
        """An id as the shards have it."""
        return document_id if self.text(document_id) == document_id else hidden_id(document_id)

    def json(self, data: bytes) -> bytes:
        """A JSON file whose strings are masked; one that begins as ids do, with a source's name, is an id."""
        if self.config.privacy is None:
            return data
        return STRING.sub(lambda match: self._string(match[0]), data)

    def _string(self, literal: bytes) -> bytes:
        value = json.loads(literal)
        source, only = value.partition("/")[0], self.config.privacy.sources
        if source not in self.config.ingest.sources:
            masked = self.text(value)
        else:
            masked = self.id(value) if only is None or source in only else value
        return literal if masked == value else json.dumps(masked, ensure_ascii=False).encode()

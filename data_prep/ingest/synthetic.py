"""Kind `synthetic`: documents that `maxlm-prep synthesize` wrote, with where they come from in their steps."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest.files import RawFile, open_decompressed
from data_prep.ingest.records import Document, Rejected, read_record, to_text


def read(file: RawFile, config: SourceConfig, ingest: IngestConfig) -> Iterator[Document | Rejected]:
    named = config.model_copy(update={"id_field": "id", "url_field": "url"})
    if config.language is None:
        named = named.model_copy(update={"language_field": "language"})
    with open_decompressed(file) as stream:
        for number, line in enumerate(stream, 1):
            record = _load(line)
            found = read_record(record, number, file.path, file.name, named, ingest)
            yield replace(found, details=_details(record)) if isinstance(found, Document) else found


def _load(line: bytes) -> Any:
    """The record of a line, or why it is none."""
    try:
        record = json.loads(line.decode("utf-8", "surrogateescape"))
        if isinstance(record, dict) and not isinstance(record.get("synthesis"), dict):
            return ValueError("no 'synthesis'; a source of other records is of the kind jsonl")
        return record
    except (ValueError, RecursionError) as error:
        return error


def _details(record: dict[str, Any]) -> tuple[str, ...]:
    """What a document was made from, by what, and how it was judged."""
    made = record["synthesis"]
    seed, template = (made.get(name) or {} for name in ("seed", "template"))
    score = (made.get("score") or {}).get("score")
    text = f"synthetic: template {template.get('name')} of seed {seed.get('id')} by {made.get('model')}"
    return (to_text(text if score is None else f"{text}, score {score}"),)

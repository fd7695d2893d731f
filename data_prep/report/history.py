"""Everything that happened to one document, whether it was kept or dropped.

A document is found by the hash of its id, which is a column of its own: of all shards of a source that column is read,
8 bytes a document, and of the one that has it the row group with its text.
"""

import heapq
from collections.abc import Iterator, Sequence
from os.path import commonprefix
from typing import Any

import numpy as np

from data_prep.config import Pipeline
from data_prep.privacy.mask import former_hash
from data_prep.report import excerpts
from data_prep.report.copies import stayed
from data_prep.report.lives import Change, Life, read_lives
from data_prep.report.masking import Masks
from data_prep.report.reasons import Reasons
from data_prep.report.trace import Trace, trace
from maxlm.data import records
from maxlm.data.shards import Shards, document_hash
from maxlm.errors import DataError

# Ids that are compared with one that is not there, and of these the ones that are named.
COMPARED, NEAREST = 200_000, 3


def find_history(config: Pipeline, document: str, source: str | None = None) -> list[dict[str, Any]]:
    """What every stage did to the documents of this id, one mapping for each source that has one; JSON values.

    An id may be given as it is in its source, or as shards have it, SOURCE/ID. Raises `DataError` where there is none.
    """
    seen = trace(config)
    if source is not None and source not in config.ingest.sources:
        raise DataError(f"there is no source '{source}'; the pipeline has {', '.join(config.ingest.sources)}")
    names = [source] if source is not None else list(config.ingest.sources)
    found = []
    for name in names:
        for one in dict.fromkeys((document, f"{name}/{document}")):
            found += [_history(seen, life) for life in _find(seen, name, one)]
    if not found:
        where = f"source '{source}'" if source is not None else f"the pipeline {config.name}"
        masks = Masks(seen)
        near = ", ".join(f"'{excerpts.shortened(masks.line(one))}'" for one in _nearest(seen, names, document))
        shown = excerpts.shortened(document)
        raise DataError(f"{where} has no document '{shown}'" + (f"; near it are {near}" if near else ""))
    return found


def _find(seen: Trace, source: str, document: str) -> Iterator[Life]:
    import pyarrow.parquet as pq

    # A document has the id that it was read with and, where that is hidden, one that has the former one's hash.
    wanted = np.array([document_hash(document), former_hash(document) or 0], np.uint64)
    masks = Masks(seen)
    for part in seen.parts:
        if part.source == source:
            hashes = pq.read_table(part.path, columns=["id_hash"])["id_hash"].to_numpy()
            if rows := np.flatnonzero(np.isin(hashes, wanted)).tolist():
                lives = read_lives(seen, part, rows, fingerprints=True)
                yield from (life for life in lives.values() if document in (life.id, masks.beside(life)["id"]))


def _nearest(seen: Trace, sources: Sequence[str], document: str) -> list[str]:
    """Ids that begin and end as one does, of the first `COMPARED`."""
    import pyarrow.parquet as pq

    def alike(one: str) -> int:
        bare = one.partition("/")[2]
        ends = ((document, bare), (document, one))
        return max(len(commonprefix(pair)) + len(commonprefix([text[::-1] for text in pair])) for pair in ends)

    ids: list[str] = []
    for part in seen.read:
        if part.source in sources and len(ids) < COMPARED:
            ids += pq.read_table(part.path, columns=["id"])["id"].to_pylist()
    near = heapq.nlargest(NEAREST, ((alike(one), one) for one in ids[:COMPARED]))
    return [one for score, one in near if score]


def _history(seen: Trace, life: Life) -> dict[str, Any]:
    masks, dropped = Masks(seen), life.dropped
    output = _output(seen, life) if dropped is None else None
    first, last = (masks.masked(life, text).text for text in (life.text, life.last))
    names = masks.beside(life)
    return {
        "id": names["id"],
        "url": names["url"],
        "source": life.part.source,
        "language": life.language,
        "read": {"from": names["origin"], "bytes": len(life.text)},
        "shard": {"file": str(life.part.path), "row": life.row},
        "stages": list(_stages(seen, life, masks)),
        "kept": dropped is None,
        "output": output,
        "why_not": _why_not(seen, life) if output is None else None,
        "text_before": first.decode(),
        "text_after": last.decode(),
    }


def _stages(seen: Trace, life: Life, masks: Masks) -> Iterator[dict[str, Any]]:
    """What happened, in order; a stage is left out where it did nothing to the document and found nothing out."""
    reasons = Reasons(seen)
    changes = {seen.steps[change.step].stage: change for change in life.changes}
    for stage in seen.found:
        columns = {name: value for name, (owner, value) in life.columns.items() if owner == stage}
        change = changes.get(stage)
        if change is None and not columns:
            continue
        did = _change(seen, life, change, masks, reasons) if change is not None else {"did": "found"}
        yield {"stage": stage, **did, **({"columns": columns} if columns else {})}


def _change(seen: Trace, life: Life, change: Change, masks: Masks, reasons: Reasons) -> dict[str, Any]:
    entry: dict[str, Any] = {"did": "kept"}
    if change.note is not None:
        entry |= {"note": change.note}
    if change.reason is not None:
        values = reasons.values(life, change.step, change.reason)
        entry |= {"did": "dropped", "reason": change.reason, "values": values}
        copies = stayed(seen, change.step, [(life.part.name, life.row)])
        for part, row in copies.values():
            entry["copy"] = {"id": masks.beside(read_lives(seen, part, [row])[row])["id"], "source": part.source}
    elif change.edits:
        found = masks.masked(life, change.before)
        entry |= {
            "did": "changed",
            "bytes": len(change.before) - len(change.after),
            "edits": [
                {"start": start, "stop": stop, "before": found.text[start:stop].decode(errors="replace"), "after": new}
                for start, stop, new in found.moved(change.edits)
            ],
        }
    return entry


def _output(seen: Trace, life: Life) -> dict[str, Any] | None:
    """Where the shards that training reads have the document first, with its tokens, and how often they have it."""
    for directory, manifest in seen.manifests.items():
        if manifest is None:
            continue
        shards = Shards(directory)
        if places := records.find(shards, life.replaced.get("id") or life.id):
            shard, row = places[0]
            start, stop = shards.span(shard, row)
            place = {"directory": directory, "shard": shard, "row": row, "tokens": stop - start}
            return place | {"copies": len(places)}
    return None


def _why_not(seen: Trace, life: Life) -> str:
    """Why no output has the document."""
    if (dropped := life.dropped) is not None:
        return f"dropped by {seen.label(dropped.step)}: {dropped.reason}"
    if seen.status.waits_for:
        return f"the pipeline is not done: it waits for {seen.status.waits_for}"
    return "it gave no tokens, or the mixture does not take it"


def print_history(found: list[dict[str, Any]]) -> None:
    from data_prep.report.history_text import lines

    for number, history in enumerate(found):
        print("\n" * bool(number) + "\n".join(lines(history)))

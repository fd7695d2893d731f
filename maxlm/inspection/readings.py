"""Where a document is in a run: at which steps it was read, or will be."""

import difflib
from collections.abc import Mapping
from itertools import islice
from typing import Any

from maxlm.data import records
from maxlm.data.pedigree import Reading, Readings, fragments
from maxlm.data.shards import Shards
from maxlm.errors import ConfigError, DataError
from maxlm.inspection.opened import Opened

LOOKED_AT = 2000  # ids of a source among which the nearest one is sought


def of_document(opened: Opened, document_id: str, source: str | None, limit: int | None) -> list[dict[str, Any]]:
    """One answer for each source that has the document; `limit` readings of each, None for all.

    Steps and epochs count from 1, steps as in metrics.jsonl. Raises `ConfigError` for a source that the run has not,
    `DataError` where no source has the document.
    """
    training = {name: one.shards for name, one in opened.sources.items()}
    if source is not None and source not in training:
        raise ConfigError(
            f"--source {source}: the run has {', '.join(training)}"
            + (" (and holds this one out)" * (source in opened.validation))
        )
    searched = {source: training[source]} if source is not None else training
    found = [
        _answer(opened, name, place, limit)
        for name, shards in searched.items()
        for place in records.find(shards, document_id)
    ]
    if not found:
        raise DataError(f"--document {document_id}: {_nowhere(opened, document_id, searched)}")
    return found


def _answer(opened: Opened, name: str, place: tuple[int, int], limit: int | None) -> dict[str, Any]:
    readings = Readings(opened.sources[name], opened.schedule, place, opened.position.examples, opened.end)
    (record,) = records.read(readings.source.shards, [place])
    counts = readings.counts()
    listed = [_told(opened, readings, place, one) for one in islice(readings, limit)]
    return {
        "source": name,
        "document": record,
        "document_tokens": readings.tokens,
        "shard": place[0],
        "shard_row": place[1],
        "counts": {state.replace(" ", "_"): count for state, count in counts.items()},
        "readings": listed,
        "left_out": sum(counts.values()) - len(listed),
    }


def _told(opened: Opened, readings: Readings, place: tuple[int, int], one: Reading) -> dict[str, Any]:
    inside = fragments(readings.source, one.seq_len, one.block, one.window)
    return {
        "step": one.step + 1,
        "state": one.state,
        "row": one.row,
        "example": one.example,
        "epoch": one.epoch + 1,
        "stage": opened.schedule.owner(one.example).stage,
        "seq_len": one.seq_len,
        "spans": [
            {"tokens": [some.first, some.first + some.length], "slots": [some.slot, some.slot + some.length]}
            for some in inside
            if some[:2] == place
        ],
    }


def _nowhere(opened: Opened, document_id: str, searched: Mapping[str, Shards]) -> str:
    """Why no source has it, and what may have been meant."""
    held_out = [name for name, shards in opened.validation.items() if records.find(shards, document_id)]
    if held_out:
        return f"is held out in {', '.join(held_out)} (data.validation), so training never reads it"
    elsewhere = [
        name
        for name, source in opened.sources.items()
        if name not in searched and records.find(source.shards, document_id)
    ]
    if elsewhere:
        return f"not in {', '.join(searched)}; it is in {', '.join(elsewhere)}"
    ids = {name: records.some_ids(shards, LOOKED_AT) for name, shards in searched.items()}
    close = difflib.get_close_matches(document_id, [one for some in ids.values() for one in some], 1)
    like = (
        f"the nearest is {close[0]}"
        if close
        else "; ".join(f"ids of {name} are like {ids[name][0]}" for name in list(ids)[:3])
    )
    return f"not in {', '.join(searched)}; preparation may have dropped it; {like}"

"""Documents to judge a stage by: some of those that it dropped for each reason, changed, and let pass.

They are chosen by a hash of their ids, so that a page that is made again shows the same ones, among the documents of
the sampled shards (sampling.py).
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.documents import Part
from data_prep.report import excerpts
from data_prep.report.copies import stayed
from data_prep.report.lives import Life, read_lives
from data_prep.report.masking import Masks
from data_prep.report.reasons import Reasons
from data_prep.report.sampling import NEVER, Fate, entries, list_of, order
from data_prep.report.trace import Trace

# Samples of a reason, of the edits and of what passes; fewer of each reason where a pipeline has very many.
EACH, EDITED, PASSED = 3, 5, 2
MOST, MOST_REASONS = 240, 40
DROPPED, CHANGED, KEPT = "dropped", "changed", "kept"


@dataclass(frozen=True)
class Choice:
    """A document that is shown for what a step did to it; `step` is the number of steps for what is kept in the end."""

    step: int
    kind: str
    reason: str
    part: Part
    row: int


def choose(trace: Trace, fates: Sequence[Fate]) -> list[Choice]:
    """In the order of the steps, of each what it dropped by reason (the most frequent first), changed and kept."""
    groups = [_groups(trace, number, fates) for number in range(len(trace.steps))]
    groups.append({(KEPT, ""): list(_passed(fates, len(trace.steps), "end", EDITED))})
    reasons = sum(min(sum(1 for kind, _ in group if kind == DROPPED), MOST_REASONS) for group in groups)
    each = max(1, min(EACH, MOST // max(1, reasons)))
    most = {DROPPED: each, CHANGED: EDITED, KEPT: EDITED}
    chosen = []
    for number, group in enumerate(groups):
        ordered = sorted(group.items(), key=lambda item: (_rank(item[0][0]), -len(item[1]), item[0]))
        rare = [name for name, _ in ordered if name[0] == DROPPED][MOST_REASONS:]
        for (kind, reason), found in ordered:
            if (kind, reason) in rare:
                continue
            for _, fate, row in heapq.nsmallest(most[kind], found, key=lambda one: (one[0], one[2])):
                chosen.append(Choice(number, kind, reason, fates[fate].part, row))
    return chosen


def _rank(kind: str) -> int:
    return (DROPPED, CHANGED, KEPT).index(kind)


def _groups(trace: Trace, number: int, fates: Sequence[Fate]) -> dict[tuple[str, str], list[tuple[int, int, int]]]:
    """(hash, number of the part, row) of the documents of a step, by what it did."""
    step = trace.steps[number]
    groups: dict[tuple[str, str], list[tuple[int, int, int]]] = defaultdict(list)
    for place, fate in enumerate(fates):
        path = list_of(step, fate.part)
        hashes = order(fate.id_hash, step.stage)
        for entry in entries(path) if path is not None else ():
            if entry.reason is not None:
                groups[DROPPED, entry.reason].append((int(hashes[entry.row]), place, entry.row))
            elif entry.edited:
                groups[CHANGED, ""].append((int(hashes[entry.row]), place, entry.row))
    if groups:
        groups[KEPT, ""] = list(_passed(fates, number, step.stage, PASSED))
    return groups


def _passed(fates: Sequence[Fate], step: int, salt: str, count: int) -> Iterable[tuple[int, int, int]]:
    found = []
    for place, fate in enumerate(fates):
        rows = np.flatnonzero((fate.dropped == NEVER) | (fate.dropped > step))
        hashes = order(fate.id_hash[rows], f"kept by {salt}")
        first = np.argsort(hashes, kind="stable")[:count]
        found += [(int(one), place, int(row)) for one, row in zip(hashes[first], rows[first], strict=True)]
    return heapq.nsmallest(count, found)


def samples(trace: Trace, fates: Sequence[Fate], masks: Masks, tell: Callable[[int], None]) -> list[dict[str, Any]]:
    """By step, as the page shows them; `tell` is told how many shards are read."""
    chosen = choose(trace, fates)
    copies = {}
    for step in range(len(trace.steps)):
        dropped = [(one.part.name, one.row) for one in chosen if one.step == step and one.kind == DROPPED]
        copies |= {(step, *document): copy for document, copy in stayed(trace, step, dropped).items()}
    wanted: dict[str, tuple[Part, set[int]]] = {}
    for part, row in [*((one.part, one.row) for one in chosen), *copies.values()]:
        wanted.setdefault(part.name, (part, set()))[1].add(row)
    lives: dict[tuple[str, int], Life] = {}
    for done, (name, (part, rows)) in enumerate(wanted.items()):
        lives |= {(name, row): life for row, life in read_lives(trace, part, sorted(rows)).items()}
        tell(done + 1)
    reasons = Reasons(trace)
    found: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for one in chosen:
        life = lives[one.part.name, one.row]
        twin = copies.get((one.step, one.part.name, one.row))
        other = lives[twin[0].name, twin[1]] if twin else None
        values = reasons.values(life, one.step, one.reason) if one.kind == DROPPED else []
        places = reasons.places(life, one.step) if one.kind == DROPPED else []
        sample = _sample(one, life, other, masks, places) | {"values": values}
        found.setdefault((one.step, one.kind, one.reason), []).append(sample)
    return _by_step(trace, found)


def _sample(
    one: Choice, life: Life, twin: Life | None, masks: Masks, places: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    change = next((change for change in life.changes if change.step == one.step), None)
    if one.kind == CHANGED and change is not None:
        text = masks.changes(life, change)
    else:
        text = masks.text(life, one.step + (one.kind != DROPPED), excerpts.CHARACTERS, places)
    found = masks.name(life) | {
        "source": life.part.source,
        "columns": {name: excerpts.plain(value) for name, (_, value) in life.columns.items() if _is_plain(value)},
        "note": excerpts.shortened(change.note) if change and change.note else None,
        "text": text,
    }
    if twin is not None:
        other = masks.text(twin, one.step, excerpts.CHARACTERS // 2)
        found["copy"] = masks.name(twin) | {"source": twin.part.source, "text": other}
    return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _by_step(trace: Trace, found: dict[tuple[int, str, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    steps: dict[int, list[dict[str, Any]]] = {}
    for (step, kind, reason), entries_ in found.items():
        steps.setdefault(step, []).append({"kind": kind, "reason": reason, "samples": entries_})
    return [{"stage": trace.label(step), "groups": groups} for step, groups in sorted(steps.items())]

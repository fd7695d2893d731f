"""Distributions: lengths, whatever columns stages added, and what rules compare with their limits. No text is read.

Read are the columns of the sampled shards (sampling.py), one after the other. Memory: 9 bytes for every document and
number, so some 60 MB for 200,000 documents and the 30 measures of a profile.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.documents import FINGERPRINTS
from data_prep.report.lives import REPLACED
from data_prep.report.sampling import Fate
from data_prep.report.trace import Trace
from data_prep.rules import filter

BINS = 48
# A histogram has a logarithmic axis where its values span more than this.
WIDE = 50
# Values outside these quantiles are in the first and the last bar.
TAILS = (0.002, 0.998)
NAMED, MOST_PROFILES = 10, 12
# Share of the axis that is left for the far side of a limit, where hardly a document is.
ROOM = 0.06


def histogram(
    name: str, values: np.ndarray, kept: np.ndarray, limit: tuple[str, float] | None = None, scale: str | None = None
) -> dict[str, Any] | None:
    """Counts of `values`, float [documents], and of those that are `kept`, bool [documents]; None without a value.

    `low` and `high` are the ends of the axis, whose `scale` is "linear", "log" (0 is in the first bar), "whole" (a bar
    for each number) or "share" (from 0 on); by default one of the first three that suits the values. `limit` is "least"
    or "most" with the number: it lies between the bars `limit_bar` - 1 and `limit_bar`.
    """
    finite = np.isfinite(values)
    values, kept = values[finite].astype(np.float64), kept[finite]
    if not len(values):
        return None
    low, high = np.quantile(values, TAILS, method="nearest").tolist()
    scale = scale or _scale(values, low, high)
    if limit is not None:
        low, high = _with_limit(low, high, *limit, scale)
    edges, bar = _edges(values, scale, low, high, limit)
    clipped = np.clip(values, edges[0], np.nextafter(edges[-1], -np.inf))
    places = np.searchsorted(edges, clipped, "right") - 1
    counts, left = (np.bincount(places[which], minlength=len(edges) - 1) for which in (slice(None), kept))
    margin = 0.5 if scale == "whole" else 0
    return {
        "name": name,
        "scale": scale,
        "low": _rounded(edges[0] + margin),
        "high": _rounded(edges[-1] - margin),
        "counts": counts.tolist(),
        "kept": left.tolist(),
        "documents": len(values),
        "median": _rounded(np.median(values)),
        "least": _rounded(values.min()),
        "most": _rounded(values.max()),
        **({"limit": limit[1], "side": limit[0], "limit_bar": bar} if limit else {}),
    }


def _with_limit(low: float, high: float, side: str, number: float, scale: str) -> tuple[float, float]:
    """The ends of an axis on which both sides of a limit have room."""
    low, high = min(low, number), max(high, number)
    room = 1 if scale == "whole" else ROOM * (high - low)
    if side == "most":
        return low, max(high, number + room)
    return max(min(low, number - room), min(low, 0.0)), high


def _scale(values: np.ndarray, low: float, high: float) -> str:
    if high - low < BINS and bool((values == np.round(values)).all()):
        return "whole"
    return "log" if low >= 0 and high > WIDE * max(np.quantile(values, 0.05), 1) else "linear"


def _edges(
    values: np.ndarray, scale: str, low: float, high: float, limit: tuple[str, float] | None
) -> tuple[np.ndarray, int]:
    """The edges of the bars, one of them at the limit, and the number of the bar that begins there."""
    if scale == "whole":
        edges = np.arange(np.floor(low) - 0.5, np.ceil(high) + 1)
        at = limit[1] + (0.5 if limit[0] == "most" else -0.5) if limit else edges[0]
        return edges, int(np.searchsorted(edges, at))
    if scale == "log":
        low = max(low, float(values[values > 0].min(initial=high)), high / 1e12)
    elif scale == "share":
        low = 0.0
    high = high if high > low else low + 1
    space = np.geomspace if scale == "log" else np.linspace
    if limit is None or not low < limit[1] < high:
        bar = 0 if limit is None or limit[1] <= low else BINS
        return space(low, high, BINS + 1), bar
    # A number that is the limit itself is on the side of those that pass.
    at = limit[1] if limit[0] == "least" else np.nextafter(limit[1], np.inf)
    whole = space(low, high, BINS + 1)
    bar = int(np.clip(np.searchsorted(whole, at), 1, BINS - 1))
    return np.concatenate([space(low, at, bar + 1), space(at, high, BINS - bar + 1)[1:]]), bar


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")


def lengths(fates: Sequence[Fate]) -> list[dict[str, Any]]:
    """Bytes of the documents as they were read, and of what is kept of them."""
    read, left, kept = (
        np.concatenate([getattr(fate, name)[fate.rows] for fate in fates]) for name in ("bytes", "left", "kept")
    )
    found = [
        histogram("as it was read", read, kept, scale="log"),
        histogram("as it is kept", left[kept], np.ones(np.count_nonzero(kept), bool), scale="log"),
    ]
    return [one for one in found if one is not None]


class _Column:
    """The values of one column, as numbers or counted by name."""

    def __init__(self) -> None:
        self.values: list[np.ndarray] = []
        self.kept: list[np.ndarray] = []
        self.names: tuple[Counter, Counter] = (Counter(), Counter())

    def add(self, column: Any, kept: np.ndarray) -> None:
        """A part's column, an Arrow array, and whether each of its documents is kept."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = column.type
        if kind == pa.uint64():
            return  # a hash
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            valid = column.is_valid().to_numpy(zero_copy_only=False)
            self.values.append(column.drop_null().to_numpy().astype(np.float64))
            self.kept.append(kept[valid])
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
            text = column.cast(pa.string())
            for counter, chosen in zip(self.names, (text, text.filter(pa.array(kept))), strict=True):
                counts = pc.value_counts(chosen.drop_null())
                counter.update(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))
        elif pa.types.is_list(kind) and pa.types.is_struct(kind.value_type) and "type" in kind.value_type.names:
            for counter, chosen in zip(self.names, (column, column.filter(pa.array(kept))), strict=True):
                counter.update(pc.struct_field(chosen.flatten(), "type").to_pylist())

    def describe(self, name: str, limit: tuple[str, float] | None) -> dict[str, Any] | None:
        if self.names[0]:
            most = [key for key, _ in sorted(self.names[0].items(), key=lambda item: (-item[1], item[0]))[:NAMED]]
            values = [[key, self.names[0][key], self.names[1][key]] for key in most]
            return {"name": name, "values": values, "others": len(self.names[0]) - len(most)}
        if not self.values:
            return None
        return histogram(name, np.concatenate(self.values), np.concatenate(self.kept), limit)


def columns(trace: Trace, fates: Sequence[Fate], tell: Callable[[int], None]) -> list[dict[str, Any]]:
    """Every column of numbers or names that a stage added, of all documents that have a value."""
    import pyarrow.parquet as pq

    parts = {part.name: part for part in trace.parts}
    found: dict[str, _Column] = {}
    for number, fate in enumerate(fates):
        for name, path in parts[fate.part.name].columns:
            if name not in (*FINGERPRINTS, *REPLACED):
                values = pq.read_table(path, columns=[name])[name].take(fate.rows).combine_chunks()
                found.setdefault(name, _Column()).add(values, fate.kept[fate.rows])
        tell(number + 1)
    limits = _limits(trace)
    described = [column.describe(name, limits.get(name)) for name, column in found.items()]
    return [one for one in described if one is not None]


def _limits(trace: Trace) -> dict[str, tuple[str, float]]:
    """The first limit of each score that the stage quality selects by."""
    found: dict[str, tuple[str, float]] = {}
    for one in trace.config.quality.select if trace.config.quality else ():
        for side, number in (("least", one.min), ("most", one.max)):
            if number is not None:
                found.setdefault(one.score, (side, float(number)))
    return found


def rules(trace: Trace, fates: Sequence[Fate], tell: Callable[[int], None]) -> list[dict[str, Any]]:
    """By profile, those of most documents, the measure of every rule with a limit: all documents, and those that pass.

    `failing` counts the documents of the sample beyond the limit, `dropped` those for which it was the first one.
    """
    config = trace.config.rules
    step = next((step for step in trace.steps if step.stage == "annotate"), None)
    if config is None or step is None:
        return []
    measures: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    reasons: dict[str, list[np.ndarray]] = {}
    for done, fate in enumerate(fates):
        table = filter.statistics(trace.folder("annotate"), step.records[step.numbers[fate.part.name]])
        table = table.take(np.arange(0, table.num_rows, max(1, len(fate.bytes) // max(1, len(fate.rows)))))
        statistics = {name: column.to_numpy() for name, column in zip(table.column_names, table.columns, strict=True)}
        profiles = statistics["profile"]
        for name in sorted(set(profiles.tolist())):
            profile, own = config.profiles[name], {key: column[profiles == name] for key, column in statistics.items()}
            reasons.setdefault(name, []).append(filter.failures(own, profile))
            for number, rule in enumerate(filter.RULES):
                if (limit := rule.limit(profile)) is not None:
                    found = (rule.values(own).astype(np.float32), rule.fails(own, limit))
                    measures.setdefault((name, number), []).append(found)
        tell(done + 1)
    described = [
        _profile(name, config.profiles[name], np.concatenate(found), measures) for name, found in reasons.items()
    ]
    return sorted(described, key=lambda one: -one["documents"])[:MOST_PROFILES]


def _profile(
    name: str,
    profile: Any,
    reasons: np.ndarray,
    measures: Mapping[tuple[str, int], list[tuple[np.ndarray, np.ndarray]]],
) -> dict[str, Any]:
    described = []
    for number, rule in enumerate(filter.RULES):
        if (name, number) not in measures:
            continue
        values, failing = map(np.concatenate, zip(*measures[name, number], strict=True))
        limit = ("least" if rule.field.startswith("min_") else "most", float(rule.limit(profile)))
        share = rule.per is not None and not rule.field.endswith("_length")
        one = histogram(rule.measure, values, reasons < 0, limit, "share" if share else None)
        described.append(
            one
            | {"rule": f"{rule.group}: {rule.reason}", "field": f"{rule.group}.{rule.field}"}
            | {"failing": int(failing.sum()), "dropped": int((reasons == number).sum())}
        )
    described.sort(key=lambda one: (-one["dropped"], -one["failing"]))
    return {"profile": name, "documents": len(reasons), "kept": int((reasons < 0).sum()), "rules": described}

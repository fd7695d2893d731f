"""How much there is: by stage, by source, by language and by output directory, in documents, bytes and tokens."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import VALIDATION_SUFFIX
from data_prep.config.urls import redact
from data_prep.console import bytes_per_token
from data_prep.documents import Part
from data_prep.funnel import Amount, FunnelRow, rate
from data_prep.report.excerpts import shortened
from data_prep.report.sampling import Fate
from data_prep.report.trace import Trace
from maxlm.data.shards import Manifest, Shards

# Reasons of a stage, sources and languages that a page names; the others are put together.
MOST = 40
OTHERS = "others"
# Documents of an output directory that are counted by language; they are shuffled, so the first ones are a sample.
MOST_COUNTED = 500_000


def rates(trace: Trace) -> dict[str, float]:
    """Bytes per token of each source over its splits, where its outputs are written."""
    found = {}
    for source in trace.config.ingest.sources:
        written = [manifest for manifest in _splits(trace, source).values() if manifest is not None]
        if written:
            tokens = sum(manifest.bytes / bytes_per_token(manifest) for manifest in written)
            found[source] = sum(manifest.bytes for manifest in written) / tokens
    return found


def _splits(trace: Trace, source: str) -> dict[str, Manifest | None]:
    names = (source, source + VALIDATION_SUFFIX)
    return {path: manifest for path, manifest in trace.manifests.items() if Path(path).name in names}


def funnel(trace: Trace) -> list[dict[str, Any]]:
    """The rows with the most frequent reasons first, and the tokens of each amount, estimated by `funnel.rate`."""
    per_token = rates(trace)
    return [_row(row, rate(row, per_token), per_token) for row in trace.funnel]


def _row(row: FunnelRow, per_token: float, rates: Mapping[str, float]) -> dict[str, Any]:
    def amount(one: Amount) -> dict[str, Any]:
        return asdict(one) | {"tokens": round(one.bytes / per_token) if per_token else None}

    return {
        "stage": row.stage,
        "before": amount(row.before),
        "after": amount(row.after),
        "dropped": {name: amount(one) for name, one in largest(row.dropped).items()},
        "changed": {name: amount(one) for name, one in largest(row.changed).items()},
        "sources": {name: asdict(one) for name, one in largest(row.sources).items()},
    }


def largest(amounts: Mapping[str, Amount]) -> dict[str, Amount]:
    """The `MOST` largest, largest first; what is nothing is left out."""
    names = sorted((name for name in amounts if amounts[name].documents), key=lambda name: -amounts[name].documents)
    found = {name: amounts[name] for name in names[:MOST]}
    if rest := [amounts[name] for name in names[MOST:]]:
        found[OTHERS] = Amount(sum(one.documents for one in rest), sum(one.bytes for one in rest))
    return found


def sources(trace: Trace) -> list[dict[str, Any]]:
    """What was read of each source and what is kept; the largest first."""
    read, kept = Amount.by_source(trace.read), Amount.by_source(trace.parts)
    found = []
    for name in sorted(read, key=lambda name: -read[name].bytes)[:MOST]:
        manifests = [manifest for manifest in _splits(trace, name).values() if manifest is not None]
        paths = trace.config.ingest.sources[name].paths
        left = kept.get(name, Amount(0, 0))
        found.append(
            {
                "source": name,
                "read": asdict(read[name]),
                "kept": asdict(left),
                "tokens": sum(manifest.tokens for manifest in manifests) if manifests else None,
                "bytes_per_token": rates(trace).get(name),
                "mean_bytes": left.bytes / left.documents if left.documents else None,
                "paths": [shortened(redact(one)) for one in paths[:MOST]],
            }
        )
    return found


def languages(trace: Trace, fates: Sequence[Fate]) -> list[dict[str, Any]]:
    """Documents and bytes by language, as read and as kept, in the sampled shards; tokens as `_tokens` has them.

    The languages are those that the last stage that found them wrote, or the sources' own.
    """
    import pyarrow.parquet as pq

    parts = {part.name: part for part in trace.parts}
    counts: dict[str, np.ndarray] = {}
    for fate in fates:
        part = parts[fate.part.name]
        path = dict(part.columns).get("language", part.path)
        column = pq.read_table(path, columns=["language"])["language"].combine_chunks().dictionary_encode()
        names = column.dictionary.to_pylist()
        codes = np.where(column.is_valid(), column.indices.fill_null(0), len(names)).astype(np.int64)
        weights = [np.ones(len(codes)), fate.bytes, fate.kept, np.where(fate.kept, fate.left, 0)]
        sums = np.stack([np.bincount(codes, weight, len(names) + 1) for weight in weights], axis=1).astype(np.int64)
        for name, row in zip([*names, "not known"], sums, strict=True):
            counts[name] = counts.get(name, 0) + row
    tokens = _tokens(trace)
    found = []
    for name, row in sorted(counts.items(), key=lambda item: -item[1][1])[:MOST]:
        if row[0]:
            read, kept = ({"documents": int(row[at]), "bytes": int(row[at + 1])} for at in (0, 2))
            found.append({"language": name, "read": read, "kept": kept, **tokens.get(name, {})})
    return found


def _tokens(trace: Trace) -> dict[str, dict[str, float]]:
    """By language the tokens of the outputs' documents and their bytes per token; of large outputs by a part."""
    import pyarrow.parquet as pq

    tokens, texts = Counter(), Counter()
    for directory, manifest in trace.manifests.items():
        if manifest is None:
            continue
        shards, start, counted = Shards(directory), 0, 0
        own, size = Counter(), Counter()
        for number, entry in enumerate(manifest.shards):
            if counted >= MOST_COUNTED:
                break
            table = pq.read_table(shards.local_documents(number), columns=["language", "bytes"])
            lengths = np.diff(np.append(start, shards.ends(start, start + entry.tokens)))
            start, counted = start + entry.tokens, counted + entry.documents
            named = table["language"].fill_null("not known").to_numpy()
            for name in set(named.tolist()):
                own[name] += int(lengths[named == name].sum())
                size[name] += int(table["bytes"].to_numpy()[named == name].sum())
        for name, count in own.items():
            tokens[name] += count * manifest.tokens / start
            texts[name] += size[name] * manifest.tokens / start
    return {name: {"tokens": round(count), "bytes_per_token": texts[name] / count} for name, count in tokens.items()}


def outputs(trace: Trace) -> list[dict[str, Any]]:
    """The directories that training reads, and their shares of all tokens of their split."""
    manifests = {path: manifest for path, manifest in trace.manifests.items() if manifest is not None}
    split = trace.config.validation is not None
    held = {path: split and Path(path).name.endswith(VALIDATION_SUFFIX) for path in manifests}
    totals = Counter()
    for path, manifest in manifests.items():
        totals[held[path]] += manifest.tokens
    return [
        {
            "directory": path,
            "split": "validation" if held[path] else "train",
            "documents": manifest.documents,
            "bytes": manifest.bytes,
            "tokens": manifest.tokens,
            "share": manifest.tokens / totals[held[path]],
            "bytes_per_token": bytes_per_token(manifest),
            "shards": len(manifest.shards),
        }
        for path, manifest in manifests.items()
    ]


def reading(parts: Sequence[Part]) -> dict[str, int]:
    return {"shards": len(parts), "documents": sum(part.rows for part in parts)}

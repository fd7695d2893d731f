"""One page on a pipeline: what each stage kept and dropped, with samples to judge it by.

All that the page shows is gathered first, as JSON, which is written beside it: the page is a function of that alone. It
holds no time, so that the same pipeline gives the same page.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.config import Pipeline
from data_prep.decontaminate import report
from data_prep.decontaminate.stage import REPORT
from data_prep.manifest import writing
from data_prep.mix import shares
from data_prep.mix.stage import STAGE as MIX
from data_prep.report import amounts, histograms
from data_prep.report.copies import cluster_sizes
from data_prep.report.masking import Masks
from data_prep.report.page import page
from data_prep.report.samples import samples
from data_prep.report.sampling import choose, follow
from data_prep.report.trace import Trace, trace

PAGE, TOKENIZERS, SYNTHESIS = "report.html", "tokenizers.json", "synthesis.json"
# What lasts longer is told, again and again.
QUIET_SECONDS = 2.0
# Benchmarks' items that are named, those of most documents first.
MOST_ITEMS = 20
# Rows of the comparison of tokenizers, one for each of them, source and language.
MOST_COMPARISONS = 200


def make_report(config: Pipeline, console: Console, path: Path | None = None) -> Path:
    """Write the page, and beside it the same as JSON; returns the path of the page.

    Raises `DataError` where nothing has been read yet, `SaveError` where the files cannot be written.
    """
    path = path or Path(config.output) / PAGE
    found = gather(config, Telling(console))
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    # The page last: where it is new, so is what it was made of.
    for name, content in ((path.with_suffix(".json"), text), (path, page(found))):
        with writing(name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return path


class Telling:
    """Says what lasts, every two seconds."""

    def __init__(self, console: Console):
        self.console, self.last = console, time.monotonic()

    def __call__(self, what: str, total: int) -> Callable[[int], None]:
        def tell(done: int) -> None:
            if (now := time.monotonic()) - self.last >= QUIET_SECONDS:
                self.last = now
                self.console.print(f"{what}: {done:,} of {total:,} shards", highlight=False, markup=False)

        return tell


def gather(config: Pipeline, telling: Callable[[str, int], Callable[[int], None]]) -> dict[str, Any]:
    """Everything that the page shows, as JSON."""
    seen = trace(config)
    parts = choose(seen.read)
    count = len(parts)
    fates = follow(seen, parts, telling("what became of the documents", count))
    masks = Masks(seen)
    return {
        "pipeline": config.name,
        "state": _state(seen),
        "sample": amounts.reading(parts) | {"of": amounts.reading(seen.read)},
        "masked": config.privacy is not None,
        "funnel": amounts.funnel(seen),
        "sources": amounts.sources(seen),
        "languages": amounts.languages(seen, fates),
        "lengths": histograms.lengths(fates),
        "columns": histograms.columns(seen, fates, telling("columns", count)),
        "rules": histograms.rules(seen, fates, telling("statistics of the rules", count)),
        "clusters": cluster_sizes(seen),
        "contamination": _contamination(seen),
        "tokenizers": (_read_json(config.work / TOKENIZERS) or [])[:MOST_COMPARISONS],
        "synthesis": _synthesis(config),
        "mix": _mix(seen),
        "outputs": amounts.outputs(seen),
        "samples": samples(seen, fates, masks, telling("samples", count)),
    }


def _state(seen: Trace) -> dict[str, Any]:
    status = seen.status
    return {
        "done": status.done,
        "waits_for": status.waits_for,
        "problem": status.problem,
        "running": status.running is not None,
        "missing": {entry.stage: [entry.done, entry.total] for entry in status.stages if entry.done != entry.total},
    }


def _contamination(seen: Trace) -> dict[str, Any] | None:
    """Of the report of the stage decontaminate: its counts, and the items that most documents have."""
    records = [record for record in seen.records.get(REPORT, ()) if report.REPORT in record.files]
    found = _read_json(seen.folder(REPORT).file(records[-1].key, report.REPORT)) if records else None
    if found is None:
        return None
    items = [item for item in found["items"] if item["status"] == "found"]
    items.sort(key=lambda item: (-item["documents"], -item["share"], item["id"]))
    # Where they were found is told in a file of its own.
    named = [{key: item[key] for key in ("benchmark", "id", "words", "documents", "share")} for item in items]
    return {"benchmarks": found["benchmarks"], "found": len(items), "items": named[:MOST_ITEMS]}


def _mix(seen: Trace) -> list[dict[str, Any]]:
    """The shares of the sources, as the stage mix reports them."""
    records = [record for record in seen.records.get(MIX, ()) if shares.REPORT in record.files]
    found = _read_json(seen.folder(MIX).file(records[-1].key, shares.REPORT)) if records else None
    return found["sources"] if found else []


def _synthesis(config: Pipeline) -> list[dict[str, Any]]:
    """What the makers of synthetic sources wrote beside them."""
    found = []
    for name, source in config.ingest.sources.items():
        for path in map(Path, source.paths):
            directory = path if path.is_dir() else path.parent
            if (values := _read_json(directory / SYNTHESIS)) is not None:
                found.append({"source": name, "values": {key: values[key] for key in values if key != "config"}})
    return found


def _read_json(path: Path) -> Any:
    """None where there is no such file, or none that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None

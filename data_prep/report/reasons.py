"""The values for which a document was dropped, beside their limits, where a stage keeps them."""

from functools import cache
from typing import Any

from data_prep.decontaminate import scan
from data_prep.decontaminate.stage import SCAN
from data_prep.decontaminate.stage import STAGE as DECONTAMINATE
from data_prep.quality.stage import STAGE as QUALITY
from data_prep.report.lives import Life
from data_prep.report.trace import Trace
from data_prep.rules import filter


class Reasons:
    """Statistics of a shard are read when one of its documents is asked for, and kept: 0.3 kB a document."""

    def __init__(self, trace: Trace):
        self.trace = trace
        self._measured = next((step for step in trace.steps if step.stage == "annotate"), None)
        self._statistics = cache(self._read)

    def values(self, life: Life, step: int, reason: str) -> list[dict[str, Any]]:
        """What was compared: `name`, `value` and the limit, as {"least": number} or {"most": number}."""
        stage = self.trace.steps[step].stage
        if stage == "language" and life.value("language_score") is not None:
            least = (self.trace.config.language.keep or {}).get(life.value("language"))
            found = {"name": "language_score", "value": life.value("language_score"), "least": least}
            return [found] if reason == "language score" and least is not None else []
        if stage == QUALITY:
            return self._scores(life, reason)
        if stage != "rules" or self._measured is None:
            return []
        config, (table, rows) = self.trace.config.rules, self._statistics(life.part.name)
        place = int(rows.searchsorted(life.row))
        profile = config.profiles[table["profile"][place].as_py()]
        return [
            {
                "name": rule.measure,
                "value": table[rule.measure][place].as_py(),
                ("least" if rule.field.startswith("min_") else "most"): rule.limit(profile),
            }
            for rule in filter.RULES
            if f"{rule.group}: {rule.reason}" == reason and rule.limit(profile) is not None
        ]

    def _scores(self, life: Life, reason: str) -> list[dict[str, Any]]:
        """The score that a reason begins with, and its limit."""
        words, found = {"least": "below", "most": "above"}, []
        for one in self.trace.config.quality.select:
            for side, number in (("least", one.min), ("most", one.max)):
                score = life.value(one.score)
                if number is not None and score is not None and reason == f"{one.score} {words[side]} {number:g}":
                    found.append({"name": one.score, "value": score, side: number})
        return found

    def places(self, life: Life, step: int) -> list[tuple[int, int]]:
        """Where in the text that a step saw stands what it dropped the document for, in bytes: what benchmarks have."""
        import pyarrow.parquet as pq

        at = self.trace.steps[step]
        if at.stage != DECONTAMINATE:
            return []
        record = self.trace.records[SCAN][at.numbers[life.part.name]]
        table = pq.read_table(self.trace.folder(SCAN).file(record.key, scan.HITS), columns=["row", "left", "right"])
        rows, left, right = (column.to_numpy() for column in table.columns)
        found: list[tuple[int, int]] = []
        for start, stop in sorted(zip(left[rows == life.row].tolist(), right[rows == life.row].tolist(), strict=True)):
            if found and start <= found[-1][1]:
                start, stop = found[-1][0], max(found.pop()[1], stop)
            found.append((start, stop))
        return found

    def _read(self, name: str) -> tuple[Any, Any]:
        record = self._measured.records[self._measured.numbers[name]]
        table = filter.statistics(self.trace.folder("annotate"), record)
        return table, table["row"].to_numpy()

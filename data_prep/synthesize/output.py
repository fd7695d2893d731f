"""What a run leaves: documents, what was dropped and why, and a summary; all in the order of the seeds.

OUTPUT/documents-NNNNN.jsonl   one document per line: id, text, language, url, and `synthesis`, where it comes from
OUTPUT/dropped-NNNNN.jsonl     one dropped seed per line: id, reason, detail, the last answer, and `synthesis`
OUTPUT/synthesis.json          counts, cost and configuration; written last

`synthesis` has seed {id, source}, template and score_template {name, hash}, model, sampling, requests (keys of the
journal), usage {input_tokens, output_tokens, cost}, score, and time (of the last answer).

They follow from the seeds and the journal alone, whatever order answers came in. A file that has not changed is not
written, so that a pipeline which reads it has nothing to do. Memory: a line, and 8 bytes for every document where they
must differ (60 as Python keeps them).
"""

import contextlib
import filecmp
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from data_prep.config.synthesis import Synthesis
from data_prep.dedup.signatures import normalised
from data_prep.manifest import save_error, writing
from data_prep.synthesize.journal import Journal
from data_prep.synthesize.recipe import Outcome, Recipe, Request, sampling
from data_prep.synthesize.seeds import Seed
from data_prep.text.texts import Texts

DOCUMENTS, DROPPED, SUMMARY = "documents", "dropped", "synthesis.json"
DUPLICATE = "duplicate"
# Ingest makes one task of a file.
FILE_BYTES = 2**26


@dataclass
class Counts:
    """Seeds by what became of them; `left` have questions that are not answered."""

    seeds: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)
    left: int = 0


def write_documents(config: Synthesis, recipe: Recipe, seeds: Iterable[Seed], journal: Journal) -> Counts:
    counts, seen = Counts(), set()
    with _Lines(config.directory, DOCUMENTS) as documents, _Lines(config.directory, DROPPED) as dropped:
        for seed in seeds:
            counts.seeds += 1
            found = recipe.follow(seed, journal.answer)
            if isinstance(found, Request):
                counts.left += 1
                continue
            reason = found.reason or _repeats(found, seen)
            entry: dict[str, Any] = {"id": _id(seed, found)}
            if reason is None:
                counts.kept += 1
                entry |= {"text": found.text, "language": seed.language, "url": seed.url}
                documents.add(entry | {"synthesis": _pedigree(config, seed, found)})
            else:
                counts.dropped[reason] += 1
                answers = list(found.trail.answers.values())
                entry |= {"reason": reason, "detail": found.detail, "answer": answers[-1].content if answers else None}
                dropped.add(entry | {"synthesis": _pedigree(config, seed, found)})
    return counts


def write_summary(config: Synthesis, counts: Counts, journal: Journal, ended: str) -> dict[str, Any]:
    """Counts of seeds are this run's; requests, tokens and cost are all that the journal has."""
    totals = asdict(journal.totals())
    summary = {
        "seeds": counts.seeds,
        "kept": counts.kept,
        "dropped": dict(sorted(counts.dropped.items())),
        "left": counts.left,
        "ended": ended,
        **totals,
        "config": config.model_dump(mode="json", by_alias=True),
    }
    with writing(config.directory / SUMMARY) as temporary:
        temporary.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return summary


def _id(seed: Seed, found: Outcome) -> str:
    prompt = found.trail.prompts.get("answer")
    return f"{seed.id}#{prompt.name}" if prompt else seed.id


def _repeats(found: Outcome, seen: set[int]) -> str | None:
    """Whether an earlier document had the same, letters and digits alone; else it is remembered."""
    if found.unique is None:
        return None
    (value,) = normalised(Texts.from_strings([found.unique])).tolist()
    if value in seen:
        return DUPLICATE
    seen.add(value)
    return None


def _pedigree(config: Synthesis, seed: Seed, found: Outcome) -> dict[str, Any]:
    answers = found.trail.answers.values()
    prompts = {name: {"name": one.name, "hash": one.hash} for name, one in found.trail.prompts.items()}
    passes = {"answer": config.generate, "score": config.score}
    return {
        "seed": {"id": seed.id, "source": seed.source},
        "template": prompts.get("answer"),
        "score_template": prompts.get("score"),
        "model": config.server.model,
        "sampling": {name: sampling(passes[name]) for name in prompts},
        "requests": list(found.trail.answers),
        "usage": {
            "input_tokens": sum(one.input_tokens for one in answers),
            "output_tokens": sum(one.output_tokens for one in answers),
            "cost": sum(one.cost for one in answers),
        },
        "score": found.score,
        "time": max((one.time for one in answers), default=None),
    }


class _Lines:
    """Files NAME-NNNNN.jsonl of about `FILE_BYTES`; each is there whole or not at all, and older ones beyond go."""

    def __init__(self, directory: Path, name: str):
        self._directory, self._name = directory, name
        self._number, self._size = 0, 0
        self._stack = contextlib.ExitStack()
        self._file: TextIO | None = None

    def __enter__(self) -> "_Lines":
        return self

    def add(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        if self._file is None:
            self._file = self._stack.enter_context(_replacing(self._path(self._number)))
        self._file.write(line)
        self._size += len(line)
        if self._size >= FILE_BYTES:
            self._finish()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        self._finish()
        for path in sorted(self._directory.glob(f"{self._name}-[0-9]*.jsonl")):
            if path.name >= self._path(self._number).name:
                path.unlink()

    def _finish(self) -> None:
        if self._file is not None:
            self._stack.close()
            self._file, self._number, self._size = None, self._number + 1, 0

    def _path(self, number: int) -> Path:
        return self._directory / f"{self._name}-{number:05d}.jsonl"


@contextlib.contextmanager
def _replacing(path: Path):
    """A file that takes the place of `path` when the block ends well, unless that has the same content."""
    temporary = path.with_name(f"{path.name}.new")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
        if path.is_file() and filecmp.cmp(temporary, path, shallow=False):
            return
        with writing(path) as final:
            temporary.rename(final)
    except OSError as error:
        raise save_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)

"""The documents of a step or of a span of slots, with everything that is known of them.

Steps and epochs count from 1, steps as in metrics.jsonl; everything else counts from 0. Spans are [first, exclusive
end].
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from maxlm.data import order, records
from maxlm.data.pedigree import Example, Fragment, examples_of, fragments
from maxlm.data.schedule import Span
from maxlm.data.shards import Shards, read_manifest
from maxlm.data.tokenizer import Tokenizer
from maxlm.data.transforms import example_keys
from maxlm.errors import ConfigError
from maxlm.inspection.opened import Opened

TOGETHER = 4096  # documents whose rows are read at a time


class Located(NamedTuple):
    """Tokens of a document in an example of a step, which counts from 0 here."""

    step: int
    span: Span
    example: Example
    fragment: Fragment


def of_step(opened: Opened, step: int, row: int | None) -> Iterator[Located]:
    """The documents of a step (from 0), of all its examples or of one.

    Raises `ConfigError` for a step beyond the run, and for an example that the step has not or that is empty.
    """
    if not 0 <= step < opened.steps:
        raise ConfigError(f"--step {step + 1}: the run has {opened.steps:,} steps; expected 1 to {opened.steps:,}")
    span = opened.schedule.span(step)
    if row is not None and not 0 <= row < span.batch_size:
        sizes = f"which has {span.batch_size:,} examples; expected 0 to {span.batch_size - 1:,}"
        raise ConfigError(f"--example {row} of step {step + 1:,}, {sizes}")
    if row is not None and row >= span.examples:
        raise ConfigError(
            f"--example {row} of step {step + 1:,} is empty: the step has {span.examples:,} examples and is filled "
            f"up to {span.batch_size:,}, since another shape or the end of the data follows"
        )
    return _of_rows(opened, step, range(span.examples) if row is None else [row])


def of_slots(opened: Opened, first: int, stop: int) -> Iterator[Located]:
    """The documents in the slots first..stop of the run; raises `ConfigError` where it has no such slots."""
    if not 0 <= first < stop <= opened.tokens:
        raise ConfigError(
            f"--tokens {first}:{stop}: the run has {opened.tokens:,} slots; expected A:B with 0 <= A < B <= "
            f"{opened.tokens}"
        )
    return _of_slots(opened, first, stop)


def step_header(opened: Opened, step: int) -> dict[str, Any]:
    """A step (from 0) as a whole."""
    span = opened.schedule.span(step)
    begun = [segment for segment in opened.schedule.beginning(step) if segment.first_example > span.first_example]
    return {
        "step": step + 1,
        "state": "read" if step < opened.position.step else "to come",
        "batch_size": span.batch_size,
        "examples": span.examples,
        "seq_len": span.seq_len,
        "slots": [span.first_tokens, span.first_tokens + span.tokens],
        "mixtures": [segment.describe() for segment in (opened.schedule.owner(span.first_example), *begun)],
    }


class Describer:
    """Adds to places in the data what is found there.

    Args:
        opened: the run.
        characters: of text that are shown of a document; None for all.
    """

    def __init__(self, opened: Opened, characters: int | None = None):
        self.opened, self.characters = opened, characters

    def describe(self, located: Iterable[Located]) -> Iterator[dict[str, Any]]:
        """What each document is, where it lies, and its text."""
        located = iter(located)
        while some := list(islice(located, TOGETHER)):
            rows = {}
            for name in dict.fromkeys(one.example.source for one in some):
                places = {one.fragment[:2] for one in some if one.example.source == name}
                ordered = sorted(places)
                rows[name] = dict(zip(ordered, records.read(self.opened.sources[name].shards, ordered), strict=True))
            for one in some:
                yield self._described(one, rows[one.example.source][one.fragment[:2]])

    def text(self, shards: Shards, start: int, stop: int) -> str:
        """Tokens of a source as text."""
        if self.characters is None:
            return self._tokenizer.decode(shards.read(start, stop))
        # A token is hardly ever less than a character, so no more than so many are looked at.
        text = self._tokenizer.decode(shards.read(start, min(stop, start + self.characters)))
        cut = len(text) > self.characters or stop - start > self.characters
        return text[: self.characters] + ("…" if cut else "")

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        shards = next(iter(self.opened.sources.values())).shards  # all have the same tokenizer
        return Tokenizer(shards.local_tokenizer(), shards.manifest.tokenizer)

    def _described(self, one: Located, record: dict[str, Any]) -> dict[str, Any]:
        example, fragment, shards = one.example, one.fragment, self.opened.sources[one.example.source].shards
        first = shards.span(fragment.shard, fragment.row)[0] + fragment.first
        slot = one.span.first_tokens + example.row * one.span.seq_len + fragment.slot
        return {
            "step": one.step + 1,
            "row": example.row,
            "slots": [fragment.slot, fragment.slot + fragment.length],
            "slots_of_run": [slot, slot + fragment.length],
            "source": example.source,
            "document": record,
            "tokens": [fragment.first, fragment.first + fragment.length],
            "document_tokens": fragment.document_tokens,
            "text": self.text(shards, first, first + fragment.length),
            "rearranged": self._is_rearranged(one),
            "example": example.number,
            "epoch": example.epoch + 1,
            "block": example.block,
            "window": example.window,
            "shard": fragment.shard,
            "shard_row": fragment.row,
        }

    def _is_rearranged(self, one: Located) -> bool:
        """Whether fill-in-the-middle changes the order of these tokens; the text is as it was prepared."""
        source, example, fragment = self.opened.sources[one.example.source], one.example, one.fragment
        if not source.fim:
            return False
        place = one.span.seq_len, example.block, example.window
        key = int(example_keys(source.seed, order.source_id(source.name), example.number))
        slots = slice(fragment.slot, fragment.slot + fragment.length)
        return not np.array_equal(source.window(*place).tokens[slots], source.read(*place, key).tokens[slots])


def pipelines(opened: Opened, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How sources were prepared, as their manifests say."""
    return {name: read_manifest(opened.config.data.sources[name].path).pipeline for name in names}


def _of_rows(opened: Opened, step: int, rows: Iterable[int]) -> Iterator[Located]:
    span = opened.schedule.span(step)
    for example in examples_of(opened.sources, opened.schedule, step, list(rows)):
        for fragment in fragments(opened.sources[example.source], span.seq_len, example.block, example.window):
            yield Located(step, span, example, fragment)


def _of_slots(opened: Opened, first: int, stop: int) -> Iterator[Located]:
    for step in range(opened.schedule.step_at(first), opened.schedule.step_at(stop - 1) + 1):
        span = opened.schedule.span(step)
        low, high = max(first - span.first_tokens, 0), min(stop - span.first_tokens, span.tokens)
        for one in _of_rows(opened, step, range(low // span.seq_len, -(-high // span.seq_len))):
            fragment, start = one.fragment, one.example.row * span.seq_len
            begin, end = max(fragment.slot, low - start), min(fragment.slot + fragment.length, high - start)
            if begin < end:
                moved = fragment.first + begin - fragment.slot
                yield one._replace(fragment=fragment._replace(first=moved, length=end - begin, slot=begin))

"""Seeds: the documents that questions are asked about, chosen by a hash of their ids, in the order of the parts.

Memory: 8 bytes for each of twice `max_seeds` documents while they are chosen, a row group of text while they are read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.documents import Part, iterate, mix

SEED_SALT, PROMPT_SALT = 2**34, 2**34 + 1
# Of a seed, as prompts name them and as the columns of a part are called.
FIELDS = ("id", "source", "url", "language", "text")


@dataclass(frozen=True)
class Seed:
    """`text` is its beginning, as far as prompts get it; `draw` lies in [0, 1) and chooses its prompt."""

    id: str
    source: str
    url: str | None
    language: str | None
    text: str
    draw: float

    @property
    def fields(self) -> dict[str, str]:
        """What prompts can name; what is not known is empty."""
        return {name: getattr(self, name) or "" for name in FIELDS}


@dataclass(frozen=True)
class Seeds:
    """Documents of parts; all of them where `last`, the greatest hash of a seed, is None."""

    parts: Sequence[Part]
    count: int
    last: int | None
    characters: int

    @staticmethod
    def choose(parts: Sequence[Part], most: int | None, characters: int) -> "Seeds":
        total = sum(part.documents for part in parts)
        if most is None or total <= most:
            return Seeds(parts, total, None, characters)
        lowest = np.zeros(0, np.uint64)
        for part in parts:
            for table in iterate(part, ("id_hash",)):
                lowest = np.concatenate([lowest, mix(table["id_hash"].to_numpy(), SEED_SALT)])
                if len(lowest) > 2 * most:
                    lowest = np.partition(lowest, most - 1)[:most]
        return Seeds(parts, most, int(np.partition(lowest, most - 1)[most - 1]), characters)

    def __iter__(self) -> Iterator[Seed]:
        import pyarrow as pa

        for part in self.parts:
            for table in iterate(part, ("id_hash", *FIELDS)):
                hashes = table["id_hash"].to_numpy()
                if self.last is not None:
                    chosen = mix(hashes, SEED_SALT) <= np.uint64(self.last)
                    table, hashes = table.filter(pa.array(chosen)), hashes[chosen]
                draws = mix(hashes, PROMPT_SALT) / 2.0**64
                columns = (table[name].to_pylist() for name in FIELDS)
                for draw, *known, text in zip(draws.tolist(), *columns, strict=True):
                    yield Seed(*known, text[: self.characters], draw)

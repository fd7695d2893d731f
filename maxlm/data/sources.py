"""Opened sources: shards with what the configuration says about reading them."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from maxlm.config import DataConfig, SourceConfig
from maxlm.data import bestfit, concat, order, transforms
from maxlm.data.packing import Packed, Piece, Text
from maxlm.data.shards import MANIFEST, Shards
from maxlm.data.store import is_url
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError, DataError

Pack = Callable[..., bestfit.PackingIndex]

# Sources above it are packed by several processes; starting them takes longer than packing so many tokens does.
PARALLEL_TOKENS = 2**31


class Source:
    """One training source as windows of any length, in the order of a run.

    Args:
        name: of the source; with the seed it fixes the order.
        shards: its tokens.
        config: what the configuration says of it.
        seed: of the run.
        pack: opens the packing index for a length, as in pack(shards, seq_len); None for concat, which needs none.
    """

    def __init__(self, name: str, shards: Shards, config: SourceConfig, seed: int, pack: Pack | None = None):
        self.name, self.shards, self.config, self.seed, self.pack = name, shards, config, seed, pack
        self.max_epochs = config.max_epochs
        self.order, self.index = lru_cache(maxsize=8)(self._order), lru_cache(maxsize=8)(self._index)

    def __getstate__(self):
        return {key: getattr(self, key) for key in ("name", "shards", "config", "seed", "pack")}

    def __setstate__(self, state):
        self.__init__(**state)

    def read(self, seq_len: int, block: int, window: int, key: int) -> Text:
        """A window of a block as the example that has this key (`transforms.example_keys`)."""
        text = self.window(seq_len, block, window)
        if self.fim:
            text = text._replace(tokens=transforms.fill_in_the_middle(text.tokens, text.ends, key, self.fim).text)
        if how := self.config.prefix_lm:
            text = text._replace(prefixes=transforms.prefix_mask(text.ends, len(text.tokens) - 1, key, how))
        return text

    def window(self, seq_len: int, block: int, window: int) -> Text:
        """A window of a block as it was prepared."""
        if index := self.index(seq_len):
            return Text(*bestfit.read_window(self.shards, index, block, window))
        return concat.read_window(self.shards, seq_len, block, window)

    def pieces(self, seq_len: int, block: int, window: int) -> list[Piece]:
        """Which tokens of the source a window holds, and in which slots."""
        if index := self.index(seq_len):
            return bestfit.pieces(index, block, window)
        return concat.pieces(self.shards, seq_len, block, window)

    def windows_of(self, seq_len: int, first: int, length: int) -> list[tuple[int, int]]:
        """(block, window) of every window that holds a token of a document, by its first token and its length."""
        if index := self.index(seq_len):
            return index.windows_of(first, length)
        return concat.windows_of(self.shards, seq_len, first, length)

    @cached_property
    def fim(self) -> transforms.Fim | None:
        """How its documents are rearranged; None for not at all."""
        if self.config.fim is None:
            return None
        tokenizer = Tokenizer(self.shards.local_tokenizer(), self.shards.manifest.tokenizer)
        return transforms.open_fim(self.config.fim, tokenizer, self.name)

    def packed(self, seq_len: int) -> Packed:
        """How well documents fit into windows of a length."""
        if index := self.index(seq_len):
            found = index.statistics
            return Packed(found.fill_rate, found.truncated_share, found.documents, found.dropped_documents)
        return concat.packed(self.shards, seq_len)

    def _order(self, seq_len: int) -> order.SourceOrder:
        """The order of the source's windows of a length."""
        index = self.index(seq_len)
        sizes = index.sizes if index else concat.sizes(len(self.shards), seq_len)
        return order.SourceOrder(sizes, self.seed, order.source_id(self.name), self.config.order == "shuffled")

    def _index(self, seq_len: int) -> bestfit.PackingIndex | None:
        """What lies where in windows of a length; None with concat."""
        return self.pack(self.shards, seq_len) if self.pack else None


class Endless:
    """Stands in for a source whose data are not here: it never ends, since nobody knows its size."""

    max_epochs = None

    def order(self, seq_len: int) -> order.SourceOrder:
        return order.SourceOrder([2**40], 0, 0, shuffled=False)


class Sources(NamedTuple):
    """Opened sources by name, in the order of the configuration."""

    train: dict[str, Source]
    validation: dict[str, Shards]

    def pack(self, lengths: Sequence[int], progress: bestfit.Progress) -> None:
        """Build the packing indexes for these lengths, where they are wanted and there are none yet."""
        for source in self.train.values():
            for seq_len in lengths if source.pack else ():
                workers = len(os.sched_getaffinity(0)) if len(source.shards) > PARALLEL_TOKENS else 1
                source.pack(source.shards, seq_len, workers=workers, progress=progress)

    def indexes(self, lengths: Sequence[int]) -> dict[str, dict[str, str]]:
        """Hashes of the packing indexes by source and length."""
        found = {name: {str(s): source.index(s) for s in lengths} for name, source in self.train.items()}
        return {name: {s: index.hash for s, index in by_length.items() if index} for name, by_length in found.items()}

    @property
    def shards(self) -> list[Shards]:
        return [*(source.shards for source in self.train.values()), *self.validation.values()]


def open_present(data: DataConfig, seed: int, remote: bool = False) -> tuple[dict[str, Source | Endless], list[str]]:
    """The training sources as far as their data are here, others as `Endless`; and the names of those others.

    What lies in an object store is not here, and nobody is asked for it, unless `remote`.
    """

    def here(path: str) -> bool:
        return remote if is_url(path) else (Path(path) / MANIFEST).is_file()

    found = {name: _open(data, name, seed) if here(source.path) else Endless() for name, source in data.sources.items()}
    return found, [name for name, source in found.items() if isinstance(source, Endless)]


def open_sources(data: DataConfig, vocab_size: int, seed: int) -> Sources:
    """Open every source of the configuration and check that they fit together and fit the model.

    Raises `DataError` for a directory that is missing, unreadable or empty, `ConfigError` where tokenizers differ
    or have more ids than the model's vocabulary.
    """
    # Side by side: each source in a store takes a request.
    with ThreadPoolExecutor(data.cache.threads) as pool:
        train = pool.map(partial(_open, data, seed=seed), data.sources)
        validation = pool.map(lambda source: Shards(source.path, data.cache), data.validation.values())
        sources = Sources(
            dict(zip(data.sources, train, strict=True)), dict(zip(data.validation, validation, strict=True))
        )
    first = sources.shards[0]
    for shards in sources.shards:
        if len(shards) < 2:
            raise DataError(f"{shards.directory}: holds {len(shards)} tokens; expected at least one document")
        if shards.manifest.tokenizer.hash != first.manifest.tokenizer.hash:
            raise ConfigError(
                f"data: {first.directory} and {shards.directory} were prepared with different tokenizers; "
                "prepare them with the same one"
            )
    if (needed := first.manifest.tokenizer.vocab_size) > vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, the tokenizer of {first.directory} has {needed} ids; set it to at "
            f"least {needed}, for example {-(-needed // 128) * 128} (a multiple of 128)"
        )
    for source in sources.train.values():
        source.fim  # noqa: B018  what the tokenizer lacks is said before anything begins
    return sources


def _open(data: DataConfig, name: str, seed: int) -> Source:
    config = data.sources[name]
    cache = Path(data.cache.directory).expanduser() / "packing"
    pack = partial(bestfit.open_index, overlong=data.overlong, verify=data.verify, cache=cache)
    return Source(name, Shards(config.path, data.cache), config, seed, pack if data.packing == "bestfit" else None)

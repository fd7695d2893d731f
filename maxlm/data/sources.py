"""Opened sources: shards with what the configuration says about reading them."""

from functools import lru_cache
from typing import NamedTuple

from maxlm.config import DataConfig, SourceConfig
from maxlm.data import concat, order
from maxlm.data.packing import Text
from maxlm.data.shards import Shards
from maxlm.errors import ConfigError, DataError


class Source:
    """One training source as windows of any length, in the order of a run.

    Args:
        name: of the source; with the seed it fixes the order.
        shards: its tokens.
        config: what the configuration says of it.
        seed: of the run.
    """

    def __init__(self, name: str, shards: Shards, config: SourceConfig, seed: int):
        self.name, self.shards, self.config, self.seed = name, shards, config, seed
        self.max_epochs = config.max_epochs
        self.order = lru_cache(maxsize=8)(self._order)

    def __getstate__(self):
        return {"name": self.name, "shards": self.shards, "config": self.config, "seed": self.seed}

    def __setstate__(self, state):
        self.__init__(**state)

    def read(self, seq_len: int, block: int, window: int) -> Text:
        """A window of a block."""
        return concat.read_window(self.shards, seq_len, block, window)

    def _order(self, seq_len: int) -> order.SourceOrder:
        """The order of the source's windows of a length."""
        sizes = concat.sizes(len(self.shards), seq_len)
        shuffled = self.config.order == "shuffled"
        return order.SourceOrder(sizes, self.seed, order.source_id(self.name), shuffled)


class Sources(NamedTuple):
    """Opened sources by name, in the order of the configuration."""

    train: dict[str, Source]
    validation: dict[str, Shards]

    @property
    def shards(self) -> list[Shards]:
        return [*(source.shards for source in self.train.values()), *self.validation.values()]


def open_sources(data: DataConfig, vocab_size: int, seed: int) -> Sources:
    """Open every source of the configuration and check that they fit together and fit the model.

    Raises `DataError` for a directory that is missing, unreadable or empty, `ConfigError` where tokenizers differ
    or have more ids than the model's vocabulary.
    """
    train = {name: Source(name, Shards(source.path), source, seed) for name, source in data.sources.items()}
    validation = {name: Shards(source.path) for name, source in data.validation.items()}
    sources = Sources(train, validation)
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
    return sources

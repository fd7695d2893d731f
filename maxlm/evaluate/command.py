"""What `maxlm eval` does with a path."""

from pathlib import Path
from typing import NamedTuple

from maxlm.config import CacheConfig, LossConfig
from maxlm.data.shards import Shards
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError
from maxlm.evaluate.load import Loaded, load_all
from maxlm.evaluate.perplexity import Result, evaluate
from maxlm.parallel import runtime
from maxlm.report.progress import track

# Examples per device and batch: evaluation keeps no activations.
BATCH_PER_DEVICE = 8
# Tokens of a sequence, where no run says how long they were in training: long contexts are slow, and rarely filled.
LONGEST = 4096


def evaluate_path(path: Path, data: list[str], sequences: int | None) -> dict[str, Result]:
    """Held-out quality of a model, on its run's own validation sources or on NAME=DIRECTORY (or URL) given."""
    runtime.setup()
    named = dict(_named(text) for text in data)
    loaded = load_all(path)
    tokenizer, reading = loaded.tokenizer, _reading(loaded)
    if not (sources := named or reading.validation):
        raise ConfigError(f"{path} has no data.validation; name held-out shards with --data NAME=DIRECTORY")
    results = {}
    for name, directory in sources.items():
        shards = Shards(directory, reading.cache)
        shards.verify(reading.verify)
        if not tokenizer.equals(Tokenizer(shards.local_tokenizer(), shards.manifest.tokenizer)):
            raise ConfigError(
                f"{shards.directory}: was prepared with another tokenizer than {path}; prepare it with the model's"
            )
        results[name] = evaluate(
            loaded.graphdef,
            loaded.params,
            shards,
            mesh=loaded.mesh,
            seq_len=reading.seq_len,
            batch_size=BATCH_PER_DEVICE * loaded.mesh.size,
            sequences=sequences,
            chunk=reading.chunk,
            mask_documents=reading.mask_documents,
            progress=lambda batches, total, name=name: track(batches, f"evaluating {name}", total),
        )
    return results


class _Reading(NamedTuple):
    """How held-out data are read."""

    validation: dict[str, str]  # directories by name
    seq_len: int
    mask_documents: bool
    chunk: int
    cache: CacheConfig
    verify: str


def _reading(loaded: Loaded) -> _Reading:
    """As the run read its data; a model that was not trained here reads documents by themselves."""
    config = loaded.config
    if config is None:
        seq_len = min(loaded.made_for or LONGEST, LONGEST)
        return _Reading({}, seq_len, True, LossConfig().chunk, CacheConfig(), "sizes")
    data, validation = config.data, {name: source.path for name, source in config.data.validation.items()}
    return _Reading(validation, data.seq_len, data.mask_documents, config.loss.chunk, data.cache, data.verify)


def _named(text: str) -> tuple[str, str]:
    name, equals, directory = text.partition("=")
    if not (name and equals and directory):
        raise ConfigError(f"--data {text}: expected NAME=DIRECTORY")
    return name, directory

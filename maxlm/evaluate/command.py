"""What `maxlm eval` does with a path."""

from pathlib import Path

from maxlm.data.shards import Shards
from maxlm.errors import ConfigError
from maxlm.evaluate.load import load_all
from maxlm.evaluate.perplexity import Result, evaluate
from maxlm.parallel import runtime
from maxlm.report.progress import track

# Examples per device and batch: evaluation keeps no activations.
BATCH_PER_DEVICE = 8


def evaluate_path(path: Path, data: list[str], sequences: int | None) -> dict[str, Result]:
    """Held-out quality of a run or checkpoint, on its own validation sources or on NAME=DIRECTORY (or URL) given."""
    runtime.setup()
    loaded = load_all(path)
    config = loaded.config
    sources = dict(_named(text) for text in data) or {n: s.path for n, s in config.data.validation.items()}
    if not sources:
        raise ConfigError(f"{path} has no data.validation; name held-out shards with --data NAME=DIRECTORY")
    results = {}
    for name, directory in sources.items():
        shards = Shards(directory, config.data.cache)
        shards.verify(config.data.verify)
        if shards.manifest.tokenizer.hash != loaded.tokenizer.entry.hash:
            raise ConfigError(
                f"{shards.directory}: was prepared with another tokenizer than {path}; prepare it with the run's"
            )
        results[name] = evaluate(
            loaded.graphdef,
            loaded.params,
            shards,
            mesh=loaded.mesh,
            seq_len=config.data.seq_len,
            batch_size=BATCH_PER_DEVICE * loaded.mesh.size,
            sequences=sequences,
            chunk=config.loss.chunk,
            mask_documents=config.data.mask_documents,
            progress=lambda batches, total, name=name: track(batches, f"evaluating {name}", total),
        )
    return results


def _named(text: str) -> tuple[str, str]:
    name, equals, directory = text.partition("=")
    if not (name and equals and directory):
        raise ConfigError(f"--data {text}: expected NAME=DIRECTORY")
    return name, directory

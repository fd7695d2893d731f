"""Earlier data sets: the shards of prepared directories, whose documents a new one should not repeat.

Beside the documents of a shard lie their fingerprints, row for row: fingerprints-NNNNN.parquet has `hash` (16 bytes),
and `normalised` (uint64) and `bands` (list of uint64) where the pipeline that wrote it found them. Text is not read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.config import VALIDATION_SUFFIX, DedupConfig, Selection
from data_prep.manifest import make_key
from maxlm.data.shards import MANIFEST, Manifest, file_entry, fingerprints_name, read_manifest
from maxlm.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

# What decides the bands of a text.
FUZZY = ("unit", "ngram", "by_language", "buckets", "rows", "seed")


@dataclass(frozen=True)
class Shard:
    """The fingerprints of one shard of an earlier data set; `directory` as the configuration names it."""

    path: Path
    key: str
    directory: str
    rows: int
    # Nothing of it is work that can be told in bytes of text.
    bytes: int = 0

    def iterate(self, columns: Sequence[str]) -> Iterator["pa.Table"]:
        """Columns, with `row` beside them, of some thousands of documents at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        start = 0
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(2**14, columns=list(columns)):
                rows = pa.array(range(start, start + len(batch)), pa.uint32())
                yield pa.table(batch.columns, list(columns)).append_column("row", rows)
                start += len(batch)


def find_shards(pipeline: Selection) -> list[Shard]:
    """The shards of `against`, in its order, of directories whose fingerprints can be compared."""
    config, shards = pipeline.dedup, []
    outputs = [source + end for source in pipeline.ingest.sources for end in ("", VALIDATION_SUFFIX)]
    for name in config.against:
        directory = Path(name)
        if directory.resolve() in [Path(pipeline.output, output).resolve() for output in outputs]:
            raise ConfigError(f"dedup.against: {name} is an output of this pipeline; expected data prepared before it")
        manifest = read_manifest(directory)
        digest = file_entry(directory / MANIFEST).sha256
        _check_settings(name, manifest, config)
        for number, entry in enumerate(manifest.shards):
            path = directory / fingerprints_name(number)
            _check_file(path, entry.files.get(path.name), entry.documents, config)
            shards.append(Shard(path, make_key("against", 1, digest, number), name, entry.documents))
    return shards


def _check_settings(name: str, manifest: Manifest, config: DedupConfig) -> None:
    """Signatures that were computed in another way would never be equal."""
    if not config.signed:
        return
    found = (manifest.pipeline or {}).get("dedup") or {}
    ours = config.model_dump(mode="json")

    def settings(dedup: dict) -> dict:
        fuzzy = dedup.get("fuzzy") or {}
        names = FUZZY if config.fuzzy else ()
        return {"signatures": dedup.get("signatures")} | {f"fuzzy.{key}": fuzzy.get(key) for key in names}

    for key, value in settings(ours).items():
        if (other := settings(found)[key]) != value:
            raise ConfigError(
                f"dedup.against: {name} was made with dedup.{key} = {other}, this pipeline has {value}; signatures can "
                "be compared where they are equal: set the same, or prepare that data again"
            )
    if config.normalised and not found.get("normalised"):
        raise ConfigError(
            f"dedup.against: {name} was made without dedup.normalised, this pipeline has it; leave it out, or prepare "
            "that data again"
        )


def _check_file(path: Path, entry: object, rows: int, config: DedupConfig) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    advice = "prepare that data again, or leave it out of dedup.against"
    if entry is None:
        raise DataError(f"{path.parent}: has no {path.name}, by which its documents are compared; {advice}")
    try:
        size = path.stat().st_size
        file = pq.ParquetFile(path) if size == entry.size else None
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read ({error}); {advice}") from None
    if file is None or file.metadata.num_rows != rows:
        raise DataError(f"{path}: is not the file of the manifest, which has {entry.size} bytes, {rows} rows; {advice}")
    wanted = {"hash": config.exact, "normalised": config.normalised, "bands": config.fuzzy is not None}
    for column in (name for name, needed in wanted.items() if needed and name not in file.schema_arrow.names):
        raise DataError(f"{path}: has no column '{column}', by which its documents are compared; {advice}")

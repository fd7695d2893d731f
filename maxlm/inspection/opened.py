"""The run that is looked at: one with checkpoints as it stands, any other as its configuration begins it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from maxlm import saved
from maxlm.config import Config, load, validate
from maxlm.data.overview import Overview, overview
from maxlm.data.schedule import Schedule
from maxlm.data.shards import Shards
from maxlm.data.sources import Endless, Source, Sources, open_present, open_sources
from maxlm.errors import ConfigError, DataError
from maxlm.report.progress import track
from maxlm.train.position import Position, layout, online_mixture
from maxlm.train.resume import check_indexes

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Opened:
    path: Path
    config: Config
    sources: Mapping[str, Source | Endless]
    without_data: Sequence[str]  # the sources that are `Endless`
    validation: Mapping[str, Shards]
    checkpoint: int | None  # step of the newest one
    position: Position

    @cached_property
    def steps(self) -> int:
        """Steps of the whole run."""
        return max(self.schedule.steps(self.config.total_tokens), self.position.step)

    @property
    def known_steps(self) -> int:
        """Steps whose data is known by now: all of them, but with a mixture that follows the losses."""
        return max(self.position.known_steps(self.config.total_tokens), self.position.step)

    @property
    def schedule(self) -> Schedule:
        return self.position.schedule

    @property
    def tokens(self) -> int:
        """Slots of the whole run."""
        span = self.schedule.span(self.steps - 1)
        return span.first_tokens + span.tokens

    @property
    def end(self) -> int:
        """Examples of the whole run, undone ones among them."""
        span = self.schedule.span(self.steps - 1)
        return max(span.first_example + span.examples, self.position.examples)

    @property
    def overview(self) -> Overview:
        return overview(self.schedule, self.config.total_tokens, self.sources, self.without_data)

    def describe(self) -> dict[str, Any]:
        """What it is, for every answer in JSON."""
        sizes = {"steps": self.steps, "known_steps": self.known_steps, "tokens": self.tokens}
        return {"run": str(self.path), "checkpoint": self.checkpoint} | sizes


def open_run(path: Path, overrides: Sequence[str], data: bool = True) -> Opened:
    """A run directory, one of its checkpoints, or a configuration file; without `data` sources may be missing.

    Of a run that has begun, overrides can say where its data are now, and nothing else. Raises `DataError` for a
    directory that is no run, and for data that are not those of the checkpoint.
    """
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        config = load(path, overrides)
        if saved.latest(config.run_dir):
            told = f"note: {config.run_dir} holds a run of this name, which maxlm inspect {config.run_dir} shows"
            print(f"{told}; this is what the file alone would begin", file=sys.stderr)
        return _begun(path, config, data)
    if checkpoint := saved.named(path):
        return _standing(path, checkpoint, overrides, data)
    if not (path / CONFIG).is_file():
        raise DataError(f"{path}: holds neither a checkpoint nor a {CONFIG}; expected a run directory")
    return _begun(path, load(path / CONFIG, overrides), data)


def _begun(path: Path, config: Config, data: bool) -> Opened:
    sources, without, validation = _sources(config, data)
    position = Position.start(layout(config, sources), online_mixture(config))
    return Opened(path, config, sources, without, validation, None, position)


def _standing(path: Path, checkpoint: Path, overrides: Sequence[str], data: bool) -> Opened:
    run = saved.read_training(checkpoint)
    config = validate(_moved(run["config"], overrides), Config, f"{checkpoint}: its configuration")
    position = Position.from_json(run)
    sources, without, validation = _sources(config, data)
    for name, source in sources.items():
        before = run["manifests"].get(name)
        if isinstance(source, Source) and before not in (None, found := source.shards.manifest.hash):
            raise DataError(
                f"{source.shards.directory}: was prepared anew since the checkpoint of step {position.step:,} "
                f"(manifest {before[:12]}, now {found[:12]}); restore the data that the run has read"
            )
    check_indexes(run.get("indexes", {}), _present(sources).indexes(_lengths(config)), config)
    return Opened(path, config, sources, without, validation, position.step, position)


def _moved(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A run's configuration with its data in other directories."""
    for text in overrides:
        key, _, directory = text.partition("=")
        section, _, rest = key.removeprefix("data.").partition(".")
        name = rest.removesuffix(".path")
        known = values["data"][section] if section in ("sources", "validation") else {}
        if key != f"data.{section}.{name}.path" or name not in known or not directory:
            raise ConfigError(
                f"override '{text}': the run has begun, so only data.sources.NAME.path=DIRECTORY and "
                "data.validation.NAME.path=DIRECTORY can be given, of data that it has"
            )
        known[name]["path"] = directory
    return values


def _sources(config: Config, data: bool) -> tuple[Mapping[str, Source | Endless], Sequence[str], Mapping[str, Shards]]:
    # The checksums of a packing index would take longer than all the rest.
    quick = config.data.model_copy(update={"verify": "sizes"})
    if data:
        opened = open_sources(quick, config.model.vocab_size, config.seed)
        sources, without, validation = opened.train, (), opened.validation
    else:
        (sources, without), validation = open_present(quick, config.seed, remote=True), {}
    _present(sources).pack(_lengths(config), lambda blocks, total: track(blocks, "packing documents", total))
    return sources, without, validation


def _present(sources: Mapping[str, Source | Endless]) -> Sources:
    return Sources({name: source for name, source in sources.items() if isinstance(source, Source)}, {})


def _lengths(config: Config) -> list[int]:
    return sorted({seq_len for _, seq_len in config.shapes})

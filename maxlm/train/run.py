"""An open run: its mesh, data, compiled step, checkpoints and metrics, and what can be done with them."""

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from importlib.metadata import version
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from maxlm import config as configuration
from maxlm.checkpoint import Checkpoints
from maxlm.config import Config
from maxlm.data.sources import open_sources
from maxlm.errors import ConfigError, DivergedError, SaveError
from maxlm.evaluate.perplexity import evaluate
from maxlm.model import counts
from maxlm.parallel.agreement import by_first, everywhere, gather, is_first, together
from maxlm.parallel.compiler import with_options
from maxlm.parallel.mesh import bubble_fraction, build_mesh, check_shapes
from maxlm.report.metrics import MetricsWriter
from maxlm.report.progress import track
from maxlm.saved import TOKENIZER, latest
from maxlm.train import doremi, reference, resume
from maxlm.train.compiled import CompiledSteps
from maxlm.train.position import Position, layout, online_mixture
from maxlm.train.reader import Reader
from maxlm.train.state import (
    TrainState,
    abstract_canonical,
    blueprint,
    from_canonical,
    initial_state,
    parameter_axes,
    to_canonical,
    with_sources,
)

CONFIG, MIXTURE = "config.yaml", "mixture.yaml"
PACKAGES = ("maxlm", "jax", "flax", "optax", "orbax-checkpoint", "grain")


class Run:
    """Opens everything that a run needs, and refuses what cannot work before anything is written."""

    def __init__(self, config: Config, devices: Sequence[jax.Device] | None = None):
        self.config, self.dir = config, config.run_dir
        self.began = time.monotonic()
        with together():
            self.mesh = build_mesh(config.mesh, devices)
            check_shapes(config, self.mesh)
            self.plan = blueprint(config, self.mesh, len(config.data.sources))
            self.sources = open_sources(config.data, config.model.vocab_size, config.seed)
            self.reference = reference.find(config, self.sources.train)
            self.bubble = bubble_fraction(config, self.mesh)
        self._stack, self._reader = ExitStack(), ExitStack()

    def __enter__(self) -> Self:
        mine = self.config.model_dump(mode="json") | {"manifests": self.manifests} | self._reference_entry
        first = json.loads(gather(json.dumps(mine))[0])
        with together():
            if unlike := resume.shown(resume.differences(first, mine)):
                listed = "; ".join(f"{key}: {before!r} there, {here!r} here" for key, (before, here) in unlike.items())
                raise ConfigError(f"process 0 was started with another configuration or other data: {listed}")
            for shards in self.sources.shards:
                shards.verify(self.config.data.verify, jax.process_index(), jax.process_count())
            if earlier := self._earlier_config():
                resume.recorded_changes(earlier, self.config)
        # Last of what needs no directory: it may take long, and writes.
        lengths = sorted({seq_len for _, seq_len in self.config.shapes})
        by_first(lambda: self.sources.pack(lengths, lambda blocks, total: track(blocks, "packing documents", total)))
        with together():
            self.layout, self.indexes = layout(self.config, self.sources.train), self.sources.indexes(lengths)
        self.checkpoints = self._stack.enter_context(Checkpoints(self.dir, self.config.checkpoint))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    # --- starting -------------------------------------------------------------------------------------------

    def restore(self, report: Callable[[str], None]) -> tuple[TrainState, Position, resume.Changes]:
        """The newest checkpoint's state and position with what changed since, else the initial ones."""
        found = self.checkpoints.restore_newest(self._abstract_items, report)
        if not found:
            return initial_state(self.plan), Position.start(self.layout, online_mixture(self.config)), {}
        with together():
            return self._resumed(*found)

    def begin(self, position: Position, changes: resume.Changes) -> None:
        """Open the metrics at the position, and write down what is about to run."""
        resumed = bool(self.checkpoints.steps())
        resume_step = position.step if resumed else (-1 if (self.dir / CONFIG).exists() else None)
        with together():
            writer = MetricsWriter(self.dir, self.config.logging.tensorboard, resume_step, write=is_first())
            self.metrics = self._stack.enter_context(writer)
        by_first(self._write_down)
        self.metrics.log_event("resumed" if resumed else "started", position.step, **self._description())
        for seq_len in sorted({segment.seq_len for segment in position.schedule.following(position.step)}):
            packed = {name: source.packed(seq_len)._asdict() for name, source in self.sources.train.items()}
            self.metrics.log_event("packing", position.step, seq_len=seq_len, sources=packed)
        if changes:
            self.metrics.log_event("config_changed", position.step, changes=resume.shown(changes))

    def _write_down(self) -> None:
        try:
            shutil.copytree(self.tokenizer_dir, self.dir / TOKENIZER, dirs_exist_ok=True)
        except OSError as error:
            raise SaveError(f"{self.dir}: cannot be written ({error})") from None
        self._write(CONFIG, configuration.to_yaml(with_options(self.config, self._device_kind)))

    def _write(self, name: str, text: str) -> None:
        """A file of the run directory at once: a killed process must not leave half of it."""
        new = self.dir / f"{name}.new"
        try:
            new.write_text(text)
            new.replace(self.dir / name)
        except OSError as error:
            raise SaveError(f"{self.dir}: cannot be written ({error})") from None

    def _resumed(self, items: dict[str, Any], saved: dict[str, Any]) -> tuple[TrainState, Position, resume.Changes]:
        resume.check_manifests(saved["manifests"], self.manifests, self.config)
        resume.check_indexes(saved.get("indexes", {}), self.indexes, self.config)
        reference.check_same(saved.get("reference"), self.reference)
        before = configuration.validate(saved["config"], Config, "the checkpoint's configuration")
        changes = resume.recorded_changes(before, self.config)
        position = Position.from_json(saved)
        if resume.change_data(changes):
            position = position.edited(self.layout, mixture="data.mixture" in changes)
        return self._state(items, saved), position, changes

    def _earlier_config(self) -> Config | None:
        """The configuration of the run that the directory holds, if it has come to a checkpoint."""
        path = self.dir / CONFIG
        return configuration.load(path) if path.is_file() and latest(self.dir) else None

    # --- stepping -------------------------------------------------------------------------------------------

    def compile(self, position: Position) -> CompiledSteps:
        """Start to compile the step of every shape of batch that the run comes to from a position on."""
        with together():
            parameters = () if self.reference is None else (self.reference.parameters(self.plan),)
        schedule, steps = position.schedule, position.schedule.steps(self.config.total_tokens)
        shapes = dict.fromkeys(s.shape for s in schedule.following(position.step) if s.first_step < steps)
        return self._stack.enter_context(CompiledSteps(self.plan, list(shapes), parameters))

    def scalar(self, value: float) -> jax.Array:
        return everywhere(np.asarray(value, np.float32), NamedSharding(self.mesh, PartitionSpec()))

    def read(self, position: Position) -> Reader:
        """The batches from the position's step on; ends the reader that was open before."""
        self._reader.close()
        self._reader = self._stack.enter_context(ExitStack())
        return self._reader.enter_context(Reader(self.sources.train, self.config, self.mesh, position))

    def announce(self, position: Position, report: Callable[[str], None]) -> None:
        """Write down and tell which mixtures begin with the next step, and where the data ends."""
        # A run that is finished begins no mixture, but may be so because its data ends.
        kinds = ("end",) if position.finished(self.config.total_tokens) else ("stage", "edit", "exhausted")
        for segment in position.schedule.beginning(position.step):
            if segment.kind in kinds:
                found = segment.describe()
                self.metrics.log_event("mixture", position.step, **found)
                shares = ", ".join(f"{name} {share:.2%}" for name, share in found["shares"].items())
                shape = f"{segment.batch_size:,} x {segment.seq_len:,} tokens a step"
                text = f"{shares}; {shape}" if shares else "all that may be read has been read"
                report(f"mixture from step {position.step + 1:,} on ({segment.kind}): {text}")

    def reset_sums(self, state: TrainState) -> TrainState:
        """The state with empty sums, after a line has taken them."""
        shapes, shardings = self.plan.abstract.sums, self.plan.shardings.sums
        zeros = jax.tree.map(lambda leaf, place: everywhere(np.zeros(leaf.shape, leaf.dtype), place), shapes, shardings)
        return state._replace(sums=zeros)

    def reset_window(self, state: TrainState) -> TrainState:
        """The state with an empty window of the spike test: what other data loses is no spike."""
        shapes, shardings = self.plan.abstract.window, self.plan.shardings.window
        zeros = jax.tree.map(lambda leaf, place: everywhere(np.zeros(leaf.shape, leaf.dtype), place), shapes, shardings)
        return state._replace(window=zeros._replace(skipped_in_row=state.window.skipped_in_row))

    # --- saving, rewinding, evaluating ----------------------------------------------------------------------

    def save(self, state: TrainState, position: Position, param_norm: jax.Array) -> float:
        """Start a checkpoint after everything logged is on disk; returns the seconds that training waited."""
        began = time.monotonic()
        if not math.isfinite(jax.device_get(param_norm)):
            raise DivergedError(f"the parameters of step {position.step} are not finite; they are not saved")
        with together():
            self.metrics.flush()
        run = position.to_json() | {
            "config": self.config.model_dump(mode="json"),
            "manifests": self.manifests,
            "sizes": {name: source.shards.manifest.sizes for name, source in self.sources.train.items()},
            "indexes": self.indexes,
            "tokenizer": self.tokenizer.model_dump(mode="json"),
        }
        state, axes = to_canonical(state, self.plan), parameter_axes(self.plan)
        run |= self._reference_entry
        self.checkpoints.save(position.step, state.params, axes, state.optimizer, state.counters, run)
        if self.reference is not None:
            by_first(lambda: self._write(MIXTURE, self._mixture(state, position)))
        return time.monotonic() - began

    def rewind(self, position: Position, report: Callable[[str], None]) -> tuple[TrainState, Position]:
        """Back to the last checkpoint, with the data going on from here; raises when the policy is used up."""
        self.checkpoints.wait()
        limit = self.config.faults.max_rewinds
        story = f"{self.config.faults.max_skips} steps in a row were skipped before step {position.step}"
        if position.rewinds >= limit or not self.checkpoints.steps():
            reason = f"{limit} rewinds did not help" if self.checkpoints.steps() else "there is no checkpoint yet"
            self.metrics.log_event("diverged", position.step, rewinds=position.rewinds)
            raise DivergedError(f"{story}, and {reason}; lower optimizer.lr or look at the data in {self.dir}")
        items, saved = self.checkpoints.restore_newest(self._abstract_items, report)
        back = position.rewound(Position.from_json(saved), self.layout)
        self.metrics.rewind(back.step)
        skipped = position.examples - Position.from_json(saved).examples
        self.metrics.log_event(
            "rewind", position.step, from_step=position.step, to_step=back.step, examples_skipped=skipped
        )
        report(f"{story}: back to step {back.step}, {skipped:,} examples are left out")
        return self._state(items, saved), back

    def evaluate(self, params: dict, position: Position, goodput: float) -> str:
        """Held-out loss of every validation source into eval.jsonl; returns a line for people."""
        told = []
        for name, shards in self.sources.validation.items():
            began = time.monotonic()
            result = evaluate(
                self.plan.graphdef,
                params,
                shards,
                mesh=self.mesh,
                seq_len=self.config.data.seq_len,
                batch_size=self.config.batch_size // self.config.train.accumulate,
                sequences=self.config.eval.sequences,
                chunk=self.config.loss.chunk,
                mask_documents=self.config.data.mask_documents,
            )
            place = {"step": position.step, "tokens": position.tokens, "source": name}
            cost = {"seconds": time.monotonic() - began, "goodput": goodput}
            self.metrics.log_eval(place | result._asdict() | cost)
            told.append(f"{name}: loss {result.loss:.4f}, {result.bits_per_byte:.4f} bits per byte")
        return f"held out at step {position.step:,}  " + "; ".join(told)

    # --- descriptions ---------------------------------------------------------------------------------------

    @property
    def tokenizer(self):
        return self.sources.shards[0].manifest.tokenizer

    @property
    def tokenizer_dir(self):
        return self.sources.shards[0].local_tokenizer()

    @cached_property
    def manifests(self) -> dict[str, str]:
        return {name: source.shards.manifest.hash for name, source in self.sources.train.items()}

    @property
    def _device_kind(self) -> str:
        return self.mesh.devices.flat[0].device_kind

    def _description(self) -> dict[str, Any]:
        return {
            "parameters": counts.parameter_count(self.config.model),
            "active_parameters": counts.active_parameter_count(self.config.model),
            "processes": jax.process_count(),
            "devices": self.mesh.size,
            "device_kind": self._device_kind,
            "mesh": dict(self.mesh.shape),
            "versions": {name: version(name) for name in PACKAGES},
        }

    @property
    def _reference_entry(self) -> dict[str, Any]:
        return {} if self.reference is None else {"reference": self.reference.identity}

    def _mixture(self, state: TrainState, position: Position) -> str:
        against, steps = self.reference.identity, position.schedule.steps(self.config.total_tokens)
        story = (
            f"Mean domain weights of {self.dir} (DoReMi) at step {position.step:,} of {steps:,}, "
            f"against {against['path']}, step {against['step']:,}."
        )
        return doremi.stage_file(self.config.data, state.domains, self.config.total_tokens, story)

    def _state(self, items: dict[str, Any], saved: dict[str, Any]) -> TrainState:
        window, sums, *domains = items["counters"]
        sums = with_sources(sums, list(saved["config"]["data"]["sources"]), list(self.sources.train), self.plan)
        return from_canonical(TrainState(items["params"], items["optimizer"], window, sums, *domains), self.plan)

    def _abstract_items(self, saved: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds, with the sources that it was written with."""
        state = abstract_canonical(self.plan, len(saved["config"]["data"]["sources"]))
        return {"params": state.params, "optimizer": state.optimizer, "counters": state.counters}

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
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError, DivergedError, SaveError
from maxlm.evaluate.knowledge import Exam, open_exams
from maxlm.model import counts
from maxlm.parallel.agreement import by_first, everywhere, from_first, gather, is_first, together
from maxlm.parallel.compiler import with_options
from maxlm.parallel.mesh import bubble_fraction, build_mesh, check_shapes
from maxlm.report.metrics import MetricsWriter
from maxlm.report.progress import track
from maxlm.saved import EMA_UPDATES, TOKENIZER, latest
from maxlm.train import doremi, initial, reference, resume
from maxlm.train.compiled import CompiledSteps
from maxlm.train.ema import Average
from maxlm.train.fork import Fork
from maxlm.train.lock import locked
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
from maxlm.train.tasks import open_run_tasks

CONFIG, MIXTURE = "config.yaml", "mixture.yaml"
ORIGINS = ("init", "forked")  # keys of a checkpoint's JSON that say where its run began
PACKAGES = ("maxlm", "jax", "flax", "optax", "orbax-checkpoint", "grain")


class Run:
    """Opens everything that a run needs, and refuses what cannot work before anything is written."""

    def __init__(self, config: Config, devices: Sequence[jax.Device] | None = None, fork: Fork | None = None):
        self.config, self.dir, self.fork = config, config.run_dir, fork
        self.began = time.monotonic()
        with together():
            self.mesh = build_mesh(config.mesh, devices)
            check_shapes(config, self.mesh)
            self.plan = blueprint(config, self.mesh, len(config.data.sources))
            self.sources = open_sources(config.data, config.model.vocab_size, config.seed)
            self.reference = reference.find(config, self.sources.train)
            # A run that has come to a checkpoint is itself, wherever what it began with may be.
            self.initial = None if fork or latest(self.dir) else initial.find(config, self.sources.shards[0])
            self.exams = self._exams() if config.eval.knowledge else {}
            self.bubble = bubble_fraction(config, self.mesh)
        self.origin = {} if self.initial is None else {"init": self.initial.identity}
        self.starts_from = False  # whether the state that `restore` returned is of another run or model
        self._stack, self._reader = ExitStack(), ExitStack()

    def __enter__(self) -> Self:
        mine = self.config.model_dump(mode="json") | {"manifests": self.manifests} | self._reference_entry
        mine |= {"origin": self.origin, "questions": {name: exam.sha256 for name, exam in self.exams.items()}}
        mine |= {"fork": None if self.fork is None else [self.fork.parent.name, self.fork.step]}
        first = json.loads(gather(json.dumps(mine))[0])
        with together():
            if unlike := resume.shown(resume.differences(first, mine)):
                listed = "; ".join(f"{key}: {before!r} there, {here!r} here" for key, (before, here) in unlike.items())
                raise ConfigError(f"process 0 was started with another configuration or other data: {listed}")
            for shards in self.sources.shards:
                shards.verify(self.config.data.verify, jax.process_index(), jax.process_count())
            if earlier := self._earlier_config():
                resume.recorded_changes(earlier, self.config)
        if self.fork and from_first(latest(self.dir) is None):
            self.fork.check(self.manifests)
        self.tasks = open_run_tasks(self.config, self.mesh, self.own_tokenizer, self.plan.graphdef)
        # Last of what needs no directory: it may take long, and writes.
        lengths = sorted({seq_len for _, seq_len in self.config.shapes})
        by_first(lambda: self.sources.pack(lengths, lambda blocks, total: track(blocks, "packing documents", total)))
        with together():
            self.layout, self.indexes = layout(self.config, self.sources.train), self.sources.indexes(lengths)
        with ExitStack() as stack:  # what was opened is closed where the rest cannot be
            by_first(lambda: stack.enter_context(locked(self.dir)))
            self.checkpoints = stack.enter_context(Checkpoints(self.dir, self.config.checkpoint))
            self._stack = stack.pop_all()
        return self

    def _exams(self) -> dict[str, Exam]:
        return open_exams(self.config.eval.knowledge, self.own_tokenizer, self.config.made_for)

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    # --- starting -------------------------------------------------------------------------------------------

    def restore(self, report: Callable[[str], None]) -> tuple[TrainState, Position, resume.Changes]:
        """The newest checkpoint's state and position with what changed since, else those that a branch is taken from,
        else those of the beginning: with the parameters of `init`, or from the start."""
        if found := self.checkpoints.restore_newest(self._abstract_items, report):
            with together():
                if self.fork:
                    report(self.fork.check_begun(self.dir, found[1].get("forked")))
                state, position, changes = self._resumed(*found, self.config)
        elif self.fork:
            state, position, changes = self._branched(self.fork, report)
        else:
            state = initial_state(self.plan) if self.initial is None else self._initialised(report)
            return state, Position.start(self.layout, online_mixture(self.config)), {}
        self.starts_from = position.step == self.origin.get("forked", {}).get("from_step")
        return state, position, changes

    def _initialised(self, report: Callable[[str], None]) -> TrainState:
        began, path = time.monotonic(), self.initial.source.path
        report(
            f"reading {'parameters and moments' if self.config.init.optimizer == 'kept' else 'parameters'} of {path}"
        )
        with together():
            items = self.initial.read(self.plan)
        nbytes, seconds = sum(leaf.nbytes for leaf in jax.tree.leaves(items)), time.monotonic() - began
        report(f"read {nbytes / 1e9:.2f} GB in {seconds:.1f} s, {nbytes / 1e6 / seconds:,.0f} MB/s")
        self.starts_from = True
        return self.initial.state(items, self.plan)

    def begin(self, position: Position, changes: resume.Changes) -> None:
        """Open the metrics at the position, and write down what is about to run."""
        resumed = bool(self.checkpoints.steps()) and not self.starts_from
        resume_step = position.step if resumed else (-1 if (self.dir / CONFIG).exists() else None)
        with together():
            writer = MetricsWriter(self.dir, self.config.logging.tensorboard, resume_step, write=is_first())
            self.metrics = self._stack.enter_context(writer)
        by_first(self._write_down)
        self.metrics.log_event("resumed" if resumed else "started", position.step, **self._description())
        if self.starts_from and self.initial:
            self.metrics.log_event("initialised", position.step, **self.initial.story())
        for seq_len in sorted({segment.seq_len for segment in position.schedule.following(position.step)}):
            packed = {name: source.packed(seq_len)._asdict() for name, source in self.sources.train.items()}
            self.metrics.log_event("packing", position.step, seq_len=seq_len, sources=packed)
        told = resume.shown(changes)
        if self.starts_from and (forked := self.origin.get("forked")):
            told = forked["changes"] | told
            self.metrics.log_event("forked", position.step, **{k: v for k, v in forked.items() if k != "changes"})
        if told:
            self.metrics.log_event("config_changed", position.step, changes=told)

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

    def _branched(self, fork: Fork, report: Callable[[str], None]) -> tuple[TrainState, Position, resume.Changes]:
        """The parent's state and position, saved at once: the parent may drop its checkpoint from here on."""
        items, saved = fork.restore(self._abstract_items, report)
        with together():
            state, position, changes = self._resumed(items, saved, fork.parent)
        self.origin |= {"forked": fork.record(saved, changes)}
        self._store(state, position)
        with together():
            self.checkpoints.wait()
        report(f"{self.dir} is branched from {fork.parent.run_dir} at step {position.step:,}, and saved")
        return state, position, changes

    def _resumed(
        self, items: dict[str, Any], saved: dict[str, Any], config: Config
    ) -> tuple[TrainState, Position, resume.Changes]:
        """State and position of a checkpoint under what is now the configuration of its run."""
        resume.check_manifests(saved["manifests"], self.manifests, config)
        resume.check_indexes(saved.get("indexes", {}), self.indexes, config)
        reference.check_same(saved.get("reference"), self.reference)
        self.origin = {key: saved[key] for key in ORIGINS if key in saved}
        before = configuration.validate(saved["config"], Config, "the checkpoint's configuration")
        changes = resume.recorded_changes(before, config)
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

    # --- saving, rewinding ----------------------------------------------------------------------------------

    def save(self, state: TrainState, position: Position, param_norm: jax.Array) -> float:
        """Start a checkpoint after everything logged is on disk; returns the seconds that training waited."""
        began = time.monotonic()
        if not math.isfinite(jax.device_get(param_norm)):
            raise DivergedError(f"the parameters of step {position.step} are not finite; they are not saved")
        with together():
            self.metrics.flush()
        self._store(state, position)
        return time.monotonic() - began

    def _store(self, state: TrainState, position: Position) -> None:
        run = position.to_json() | {
            "config": self.config.model_dump(mode="json"),
            "manifests": self.manifests,
            "sizes": {name: source.shards.manifest.sizes for name, source in self.sources.train.items()},
            "indexes": self.indexes,
            "tokenizer": self.tokenizer.model_dump(mode="json"),
        }
        state, axes = to_canonical(state, self.plan), parameter_axes(self.plan)
        run |= self._reference_entry | self.origin
        if state.ema is not None:
            run |= {EMA_UPDATES: int(state.ema.updates)}
        average = state.ema and state.ema.params
        self.checkpoints.save(position.step, state.params, axes, state.optimizer, state.counters, run, average)
        if self.reference is not None:
            by_first(lambda: self._write(MIXTURE, self._mixture(state, position)))

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

    # --- descriptions ---------------------------------------------------------------------------------------

    @property
    def evaluates(self) -> bool:
        """Whether there is anything to evaluate the model on."""
        return bool(self.sources.validation or self.exams)

    @property
    def tokenizer(self):
        return self.sources.shards[0].manifest.tokenizer

    @property
    def own_tokenizer(self) -> Tokenizer:
        return Tokenizer(self.tokenizer_dir, self.tokenizer)

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
        state = TrainState(items["params"], items["optimizer"], window, sums, *domains)
        if "ema" in items:
            updates = everywhere(np.int32(saved[EMA_UPDATES]), self.plan.shardings.ema.updates)
            state = state._replace(ema=Average(items["ema"], updates))
        return from_canonical(state, self.plan)

    def _abstract_items(self, saved: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds, with the sources that it was written with."""
        state = abstract_canonical(self.plan, len(saved["config"]["data"]["sources"]))
        average = {} if state.ema is None or EMA_UPDATES not in saved else {"ema": state.ema.params}
        return {"params": state.params, "optimizer": state.optimizer, "counters": state.counters} | average

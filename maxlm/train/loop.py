"""Training, from configuration to report: start or resume, step, log, evaluate, save.

The host never waits for the step it has just started. Metrics are read at log steps alone, one step late, so the
device always has the next step to go on with.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from maxlm.config import Config
from maxlm.errors import Preempted
from maxlm.model.counts import flops_per_token
from maxlm.parallel import runtime
from maxlm.parallel.agreement import by_first, from_first, is_first, one_fate, together
from maxlm.report.html import write_report
from maxlm.report.progress import Progress, compact
from maxlm.train import doremi
from maxlm.train.evaluation import ask, evaluate
from maxlm.train.fork import branch
from maxlm.train.meter import Meter
from maxlm.train.position import Position
from maxlm.train.run import Run
from maxlm.train.schedule import learning_rate
from maxlm.train.signals import StopRequest
from maxlm.train.state import TrainState, expert_load

REPORT = "report.html"


def train(
    config: Config,
    devices: Sequence[jax.Device] | None = None,
    *,
    fork: str | None = None,
    fork_step: int | None = None,
) -> TrainState:
    """Train on the devices (default: all), or go on where the newest checkpoint stands; returns the final state.

    Raises `MaxlmError`s with the exit codes of the command line: `Preempted` after SIGTERM and a complete save,
    `DivergedError` when steps are skipped beyond the policy of the `faults` section. All processes of a run call this
    with the same configuration; what decides a step is the same in all of them, or agreed.

    With `fork` the configuration is that of a branch of this name, in all else: `config.name` is the run whose newest
    checkpoint, or that of `fork_step`, the branch begins with. A branch that has begun goes on.
    """
    runtime.setup(config.processes)
    config, origin = branch(config, fork, fork_step)
    with one_fate(), StopRequest() as stop, Run(config, devices, origin) as run:
        state, position, changes = run.restore(report=print_note)
        if position.finished(config.total_tokens):
            print_note(f"{run.dir} is finished: step {position.step:,}, {compact(position.tokens)} tokens")
            return state
        run.begin(position, changes)
        for note in (note for exam in run.exams.values() for note in exam.notes):
            print_note(note)
        total_steps = position.schedule.steps(config.total_tokens)
        with Progress(config.name, total_steps, position.step, shown=is_first()) as progress:
            return steps(run, state, position, stop, progress)


def steps(run: Run, state: TrainState, position: Position, stop: StopRequest, progress: Progress) -> TrainState:
    """The loop: from a state and position to the end of the run."""
    config = run.config
    began = time.monotonic()
    compiled = run.compile(position)
    compiled[position.span.shape]
    progress.note(f"compiled the step in {time.monotonic() - began:.1f} s")
    meter = Meter(list(run.mesh.devices.flat), run.began)
    reader, saver, pending = run.read(position), SaveClock(config), None

    if run.starts_from and run.evaluates:  # what it knew, so that a report can show what it forgot
        progress.note(f"before the first step, {evaluate(run, state, position, progress.track)}")
    if run.starts_from and run.tasks is not None:
        progress.note(f"before the first step, {ask(run, state, position, progress.track)}")
    while not position.finished(config.total_tokens):
        trace(run, position.step + 1, progress.total_steps)
        run.announce(position, progress.note)
        if position.changes_data:
            state = run.reset_window(state)
        batch, span = meter.next_batch(reader), position.span
        after, total_tokens = position.advanced(), position.schedule.tokens(config.total_tokens)
        rate = learning_rate(config.schedule, config.optimizer.lr, after.tokens, total_tokens)
        state, metrics = compiled[span.shape](state, batch, run.scalar(rate))
        position = after
        meter.step_started(metrics, span.tokens, span.tokens * flops_per_token(config.model, span.seq_len))

        last, stopping = position.finished(config.total_tokens), stop.agreed()
        evaluating = run.evaluates and (last or due(position.step, config.eval.every_steps))
        asking = run.tasks is not None and (last or due(position.step, config.eval.task_steps))
        saving = last or stopping or saver.due(position.step)

        in_row = 0
        if pending:  # the log step before this one, which is done by now
            position, in_row = write_line(run, pending, position, meter, progress)
            pending = None
        if last or due(position.step, config.logging.every_steps):
            pending = Line(position, metrics, rate)
            state = run.reset_sums(state)
        if pending and (evaluating or asking or saving):  # what is saved or evaluated has its line before
            position, in_row = write_line(run, pending, position, meter, progress)
            pending = None

        reader.extend(position)
        if in_row >= config.faults.max_skips:
            state, position = run.rewind(position, progress.note)
            reader, pending = run.read(position), None
            continue
        if evaluating or asking or saving:
            meter.settle()
        if evaluating:
            goodput = meter.goodput.ratio(time.monotonic())
            progress.note(evaluate(run, state, position, progress.track, goodput))
        if asking:
            progress.note(ask(run, state, position, progress.track))
        if saving:
            seconds = run.save(state, position, metrics["param_norm"])
            saver.saved(position.step)
            run.metrics.log_event("checkpoint", position.step, seconds=seconds)
        if stopping and not last:
            with together():
                run.checkpoints.wait()
            run.metrics.log_event("preempted", position.step, signal=stop.signal.name)
            raise stopped(position, stop)

    run.announce(position, progress.note)
    trace(run, position.step + 1, position.step)
    with together():
        run.checkpoints.wait()
        goodput = meter.goodput.ratio(time.monotonic())
        run.metrics.log_event("finished", position.step, goodput=goodput, seconds=time.monotonic() - run.began)
        run.metrics.flush()
    report = by_first(lambda: write_report([run.dir], run.dir / REPORT))
    progress.note(
        f"finished: step {position.step:,}, {compact(position.tokens)} tokens, goodput {goodput:.1%}, {report}"
    )
    return state


class Line(NamedTuple):
    """A line of the metrics whose values are still on the device."""

    position: Position
    metrics: dict[str, Any]
    learning_rate: float


def write_line(run: Run, line: Line, now: Position, meter: Meter, progress: Progress) -> tuple[Position, int]:
    """Read a log step's values and write its line; returns `now` with its sums counted, and the skips in a row."""
    values = jax.device_get(line.metrics)
    sums, domains = values.pop("sums"), values.pop("domains", None)
    in_row = int(values.pop("skipped_in_row"))
    names = list(run.sources.train)
    targets = {name: int(count) for name, count in zip(names, sums.targets, strict=True)}
    nll = {name: float(nats) for name, nats in zip(names, sums.nll, strict=True)}
    losses = {name: nll[name] / targets[name] for name in names if targets[name]}
    now = now.counted(line.position.step, nll, targets, run.config, run.layout)
    weights = {"mixture_weights": now.schedule.weights(line.position.step - 1)} if now.online else {}
    written = (
        {"step": line.position.step, "tokens": line.position.tokens, "target_tokens": now.target_tokens}
        | {name: float(value) for name, value in values.items()}
        | {"learning_rate": line.learning_rate, "skipped": int(sums.skipped)}
        | {"loss_by_source": losses, "tokens_by_source": targets, "bubble": run.bubble}
        | weights
        | expert_load(sums)
        | doremi.metrics(run.config.data, domains, sums.excess, sums.targets)
        | meter.take(line.metrics)
    )
    run.metrics.log(written)
    progress.update(written)
    if sums.skipped:
        run.metrics.log_event("skipped", line.position.step, count=int(sums.skipped))
        progress.note(f"skipped {int(sums.skipped)} steps up to step {line.position.step:,}: spikes or not finite")
    run.checkpoints.check()
    return now, in_row


class SaveClock:
    """When the next checkpoint is due, by steps and by time since the last one.

    With several processes the clock is process 0's, and it is looked at in log steps alone: to ask it, the devices
    have to come to the end of their work.
    """

    def __init__(self, config: Config):
        self._config, self._log_steps = config.checkpoint, config.logging.every_steps
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        config = self._config
        return self._late(step) or due(step, config.every_steps) or due(step, config.keep_every_steps)

    def _late(self, step: int) -> bool:
        if self._config.every_minutes is None:
            return False
        late = time.monotonic() - self._last >= self._config.every_minutes * 60
        if jax.process_count() == 1:
            return late
        return due(step, self._log_steps) and from_first(late)

    def saved(self, step: int) -> None:
        self._last = time.monotonic()


def due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def trace(run: Run, step: int, total_steps: int) -> None:
    """Before a step (or after the last one): start or stop the xprof trace that the configuration asks for."""
    profile = run.config.logging.profile
    if profile is None:
        return
    if step == profile.start_step:
        jax.profiler.start_trace(str(run.dir / "profile"))
    if step > profile.start_step and step == min(profile.start_step + profile.num_steps, total_steps + 1):
        jax.profiler.stop_trace()


def stopped(position: Position, stop: StopRequest) -> Preempted:
    error = Preempted(f"stopped by {stop.signal.name} at step {position.step:,}, saved; the same command goes on there")
    error.exit_code = stop.exit_code
    return error


def print_note(text: str) -> None:
    if is_first():
        print(text, file=sys.stderr, flush=True)

"""What a run measures of its model while it trains: lines of eval.jsonl, and one for people."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from maxlm.evaluate import knowledge as questions
from maxlm.evaluate import perplexity
from maxlm.evaluate.task_command import described, group_lines, line_of
from maxlm.report.progress import Track
from maxlm.saved import EMA, PARAMS
from maxlm.train.position import Position
from maxlm.train.run import Run
from maxlm.train.state import TrainState, averaged_parameters


class Measured(NamedTuple):
    """The model of a step, or the average of its parameters."""

    run: Run
    position: Position
    weights: str  # PARAMS or EMA
    params: dict
    track: Track

    @property
    def head(self) -> dict[str, Any]:
        """What every line of eval.jsonl begins with; other weights than the parameters are named."""
        named = {} if self.weights == PARAMS else {"weights": self.weights}
        return {"step": self.position.step, "tokens": self.position.tokens} | named

    @property
    def rows(self) -> int:
        """Sequences at a time: as many as a step takes."""
        return self.run.config.batch_size // self.run.config.train.accumulate

    def told(self, name: str) -> str:
        return name if self.weights == PARAMS else f"average of {name}"


def evaluate(run: Run, state: TrainState, position: Position, track: Track, goodput: float = 0.0) -> str:
    """Measure the model of a step, and the average of its parameters where there is one; returns a line for people."""
    told = [line for one in models(run, state, position, track) for line in (*held_out(one, goodput), *knowledge(one))]
    return f"evaluated at step {position.step:,}  " + "; ".join(told)


def ask(run: Run, state: TrainState, position: Position, track: Track) -> str:
    """Measure the model of a step on the tasks of lm-eval, and the average; returns a line for people."""
    told = [line for one in models(run, state, position, track) for line in tasks(one)]
    return f"asked at step {position.step:,}  " + "; ".join(told)


def models(run: Run, state: TrainState, position: Position, track: Track) -> Iterator[Measured]:
    """What is measured of a step, one after the other: an average is made when the parameters are done."""
    yield Measured(run, position, PARAMS, state.params, track)
    if state.ema is not None:
        yield Measured(run, position, EMA, averaged_parameters(state, run.plan), track)


def tasks(one: Measured) -> Iterator[str]:
    """Every task of lm-eval, then the groups that have figures of their own; a text for each."""
    opened, model = one.run.tasks.tasks, one.run.tasks.model(one.params, one.position.step, one.track)
    read = described(model, opened)
    lines: dict[str, dict[str, Any]] = {}
    for name in opened.tasks:
        lines[name] = line_of(opened, name, model, read, one.head, one.track)
        one.run.metrics.log_eval(lines[name])
    groups = group_lines(opened, lines, read, one.head)
    for line in groups.values():
        one.run.metrics.log_eval(line)
    for name, line in (lines | groups).items():
        figures = ", ".join(f"{metric} {value:.4f}" for metric, value in line["metrics"].items())
        yield f"{one.told(name)}: {figures}"


def held_out(one: Measured, goodput: float) -> Iterator[str]:
    """Loss of every validation source."""
    run = one.run
    for name, shards in run.sources.validation.items():
        began = time.monotonic()
        result = perplexity.evaluate(
            run.plan.graphdef,
            one.params,
            shards,
            mesh=run.mesh,
            seq_len=run.config.data.seq_len,
            batch_size=one.rows,
            sequences=run.config.eval.sequences,
            chunk=run.config.loss.chunk,
            mask_documents=run.config.data.mask_documents,
            progress=lambda batches, total, name=name: one.track(batches, f"evaluating {name}", total),
        )
        cost = {"seconds": time.monotonic() - began, "goodput": goodput}
        run.metrics.log_eval(one.head | {"source": name} | result._asdict() | cost)
        yield f"{one.told(name)}: loss {result.loss:.4f}, {result.bits_per_byte:.4f} bits per byte"


def knowledge(one: Measured) -> Iterator[str]:
    """Answers to every file of questions."""
    run = one.run
    for name, exam in run.exams.items():
        began = time.monotonic()
        result = questions.evaluate(
            run.plan.graphdef,
            one.params,
            exam,
            mesh=run.mesh,
            rows=one.rows,
            chunk=run.config.loss.chunk,
            progress=lambda scored, total, name=name: one.track(scored, f"asking {name}", total, "answers"),
        )
        line = one.head | questions.describe(exam, result, run.plan.dtype.name)
        run.metrics.log_eval(line | {"seconds": time.monotonic() - began})
        acc, bits = result.metrics["acc"], result.metrics["bits_per_byte"]
        yield f"{one.told(name)}: acc {acc:.3f}, {bits:.4f} bits per byte"

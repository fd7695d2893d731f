"""Runs through stages of other mixtures, batches and lengths: what they read, say and save, on one device."""

import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import jax
import numpy as np
import pytest
from float64_decoder import Float64Decoder

from maxlm import saved
from maxlm.config import Config
from maxlm.data.loader import Batches
from maxlm.data.sources import open_sources
from maxlm.errors import ConfigError, Preempted
from maxlm.report.metrics import read_lines
from maxlm.train import compiled, loop
from maxlm.train.position import layout
from maxlm.train.run import Run

STAGES = [
    {"tokens": 32 * 35, "weights": {"model": 3, "prep": 1}},  # ends after 3 examples of step 5
    {"tokens": 32 * 20, "weights": {"model": 1, "prep": 3}},  # ends after 7 of step 7, which is filled up
    {"tokens": 512 * 3, "weights": {"model": 1, "prep": 1}, "batch_tokens": 512},  # steps 8 to 10
    {"tokens": 512 * 2, "weights": {"prep": 1}, "batch_tokens": 512, "seq_len": 64},  # steps 11 and 12
]
TOTAL = sum(stage["tokens"] for stage in STAGES)
TOKENS = list(accumulate([256] * 6 + [224] + [512] * 5))  # after each step
SHAPES = [(8, 32), (16, 32), (8, 64)]
EVERY_STEP = {"logging.every_steps": 1, "checkpoint.every_steps": 3, "eval.every_steps": None}


@pytest.fixture
def make_run(make_config) -> Callable[..., Config]:
    """A run of the four stages, without held-out sources: make_run({"optimizer.lr": 1e-4}, name="other")."""

    def make(changes: dict | None = None, **top) -> Config:
        config = make_config({"data.mixture": STAGES} | (changes or {}), **top)
        return config.model_copy(update={"data": config.data.model_copy(update={"validation": {}})})

    return make


@pytest.fixture(autouse=True)
def programs(monkeypatch) -> list[tuple[int, int]]:
    """The shapes that were compiled in a test; equal programs are compiled once in this file."""
    compile_step, shapes = compiled.CompiledSteps._compile, []

    def remembered(self, *shape: int):
        plan = self._plan
        key = (shape, plan.num_sources, repr((plan.config.model, plan.config.optimizer, plan.config.faults)))
        shapes.append(shape)
        if key not in COMPILED:
            COMPILED[key] = compile_step(self, *shape)
        return COMPILED[key]

    monkeypatch.setattr(compiled.CompiledSteps, "_compile", remembered)
    return shapes


COMPILED = {}


class Died(BaseException):
    """In place of SIGKILL: nothing is saved on the way out."""


def train(config: Config, before: Callable[[int], None] | None = None):
    """On one device; `before` is called before every step with its number, from 1."""
    announce = Run.announce

    def announced(run: Run, position, report) -> None:
        announce(run, position, report)
        if before:
            before(position.step + 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "announce", announced)
        return loop.train(config, jax.devices()[:1])


def stop_after(last: int) -> Callable[[int], None]:
    return lambda step: signal.raise_signal(signal.SIGTERM) if step == last else None


def die_in(victim: int) -> Callable[[int], None]:
    def die(step: int) -> None:
        if step == victim:
            raise Died

    return die


def lines(config: Config) -> list[dict]:
    return read_lines(config.run_dir / "metrics.jsonl")


def events(config: Config, kind: str) -> list[dict]:
    return [event for event in read_lines(config.run_dir / "events.jsonl") if event["kind"] == kind]


def global_batches(config: Config) -> list[dict]:
    """What an uninterrupted run reads, straight from the loader."""
    sources = open_sources(config.data, config.model.vocab_size, config.seed).train
    schedule = layout(config, sources).begin()
    rows = {size: range(size) for size, _ in map(config.shape_of, config.data.mixture)}
    read = Batches(sources, schedule, rows=rows, num_steps=schedule.steps(config.total_tokens))
    return [read[step] for step in range(len(read))]


def count_by_source(config: Config, batches: list[dict]) -> dict[str, int]:
    names = list(config.data.sources)
    return {name: sum(int(b["weights"][b["sources"] == n].sum()) for b in batches) for n, name in enumerate(names)}


def nll_by_source(config: Config, params: dict, batches: list[dict]) -> dict[str, float]:
    """Nats in float64, token after token."""
    decoder, found = Float64Decoder(config.model, params), dict.fromkeys(config.data.sources, 0.0)
    for batch in batches:
        for row in np.flatnonzero(batch["weights"].any(1)):
            logits = decoder(*(batch[name][row] for name in ("tokens", "segment_ids", "positions")))
            target = logits[np.arange(len(logits)), batch["targets"][row]]
            nll = np.log(np.exp(logits).sum(1)) - target
            found[list(found)[batch["sources"][row]]] += float(nll @ batch["weights"][row])
    return found


def test_a_run_through_its_stages_says_what_it_read(make_run, programs):
    """At a rate that changes nothing, so that every step's loss is that of the initial parameters."""
    config = make_run({"optimizer.lr": 1e-30, "logging.every_steps": 2, "checkpoint.every_steps": None})
    state, batches = train(config), global_batches(config)
    assert [batch["tokens"].shape for batch in batches] == [SHAPES[0]] * 7 + [SHAPES[1]] * 3 + [SHAPES[2]] * 2
    assert programs == SHAPES
    read = lines(config)
    assert [line["step"] for line in read] == [2, 4, 6, 8, 10, 12]
    assert [line["tokens"] for line in read] == [TOKENS[line["step"] - 1] for line in read]
    # Warm-up over 1,024 tokens and decay over the last 1,024, to a tenth.
    assert [line["learning_rate"] / 1e-30 for line in read] == pytest.approx([0.5, 1, 1, 1, 1, 0.1])
    params = jax.tree.map(np.asarray, state.params)
    for line in read:
        own = batches[line["step"] - 2 : line["step"]]
        counted = count_by_source(config, own)
        assert line["tokens_by_source"] == counted
        nll = nll_by_source(config, params, own)
        for name, loss in line["loss_by_source"].items():
            assert loss * counted[name] == pytest.approx(nll[name], rel=1e-6)
        assert set(line["loss_by_source"]) == {name for name, count in counted.items() if count}
        last = batches[line["step"] - 1 : line["step"]]
        nll = nll_by_source(config, params, last)
        assert line["loss"] == pytest.approx(sum(nll.values()) / last[0]["weights"].sum(), rel=1e-6)
    assert read[-1]["target_tokens"] == sum(count_by_source(config, batches).values())
    assert read[-1]["loss_by_source"].keys() == {"prep"}
    assert int(state.window.accepted) == 2  # the spike test looks back to the last stage's beginning


def test_every_stage_is_an_event_at_its_step_and_is_told(make_run, capfd):
    config = make_run()
    train(config)
    found = [(event["step"], event["why"], event["stage"], event["example"]) for event in events(config, "mixture")]
    assert found == [(4, "stage", 1, 35), (7, "stage", 2, 55), (10, "stage", 3, 103)]
    last = events(config, "mixture")[-1]
    assert (last["shares"], last["seq_len"], last["batch_tokens"]) == ({"prep": 1.0}, 64, 512)
    windows = {name: source.order(32) for name, source in opened(config).items()}
    for name, left_out in last["abandoned"].items():  # of one block each
        assert 0 < left_out < windows[name].windows and len(windows[name].sizes) == 1
    assert "mixture from step 5 on (stage): model 25.00%, prep 75.00%; 8 x 32 tokens a step" in capfd.readouterr().err


def opened(config: Config) -> dict:
    return open_sources(config.data, config.model.vocab_size, config.seed).train


def test_a_run_that_is_stopped_at_its_boundaries_ends_with_the_same_bits(make_run, programs):
    whole, parts = make_run(EVERY_STEP, name="whole"), make_run(EVERY_STEP, name="parts")
    end = train(whole)
    for stop in (4, 5):  # before and behind a stage that ends inside step 5
        with pytest.raises(Preempted, match=f"at step {stop}, saved"):
            train(parts, stop_after(stop))
    with pytest.raises(Died):  # behind the last checkpoint, at step 6, the shape has changed
        train(parts, die_in(9))
    for stop in (7, 10):  # where a batch was filled up, and where the length changes
        with pytest.raises(Preempted, match=f"at step {stop}, saved"):
            train(parts, stop_after(stop))
    again = train(parts)
    resumed = [event["step"] for event in events(parts, "resumed")]
    assert resumed == [4, 5, 6, 7, 10]
    for one, other in zip(*map(jax.tree.leaves, (end, again)), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    timings = ("step_seconds", "data_wait_seconds", "tokens_per_second")
    read = [[{key: line[key] for key in line if key not in timings} for line in lines(run)] for run in (whole, parts)]
    assert read[0] == read[1] and [line["tokens"] for line in read[0]] == TOKENS
    checkpoints = [saved.read_run(saved.latest(config.run_dir)) for config in (whole, parts)]
    assert checkpoints[0]["loader"] == checkpoints[1]["loader"]


def test_a_run_that_stops_early_neither_compiles_nor_tells_of_what_it_does_not_come_to(make_run, programs):
    first = make_run({"train.total_tokens": TOKENS[6]})
    train(first)
    assert programs == SHAPES[:1]
    assert [event["stage"] for event in events(first, "mixture")] == [1]
    train(make_run())
    assert programs == SHAPES
    assert [(event["step"], event["stage"]) for event in events(first, "mixture")] == [(4, 1), (7, 2), (10, 3)]


def test_an_edited_mixture_counts_from_now_on_and_is_an_event(make_run):
    first = make_run(EVERY_STEP)
    with pytest.raises(Preempted):
        train(first, stop_after(2))
    edited = make_run(EVERY_STEP | {"data.mixture": [{"tokens": 256 * 6, "weights": {"model": 1, "prep": 7}}]})
    state = train(edited)
    (changed,) = events(edited, "config_changed")
    assert changed["step"] == 2 and changed["changes"]["data.mixture"][1][0]["weights"] == {"model": 1, "prep": 7}
    (mixture,) = events(edited, "mixture")
    assert (mixture["step"], mixture["why"], mixture["shares"]) == (2, "edit", {"model": 0.125, "prep": 0.875})
    segments = saved.read_run(saved.latest(edited.run_dir))["loader"]["schedule"]
    assert [(s["kind"], s["first_step"], s["first_example"]) for s in segments] == [("start", 0, 0), ("edit", 2, 16)]
    old, new = (global_batches(config) for config in (first, edited))
    read = lines(edited)
    assert [line["tokens_by_source"] for line in read[:2]] == [count_by_source(first, [batch]) for batch in old[:2]]
    assert [line["tokens"] for line in read] == [256 * step for step in range(1, 7)]
    # One of eight rows is the model's; which one goes on from the remainders of before.
    assert all(0 < line["tokens_by_source"]["model"] <= 32 * 2 for line in read[2:])
    assert int(state.window.accepted) == 4 and new[0]["tokens"].shape == old[0]["tokens"].shape


def test_a_source_may_be_added_and_none_removed(make_run, prepared):
    first = make_run(EVERY_STEP)
    with pytest.raises(Preempted):
        train(first, stop_after(2))
    weights = {"model": 1, "prep": 1, "more": 2}
    more = {
        "data.sources.more.path": str(prepared / "prep-val"),
        "data.mixture": [{"tokens": 256 * 5, "weights": weights}],
    }
    added = make_run(EVERY_STEP | more)
    train(added)
    read = lines(added)
    assert [line["step"] for line in read] == [1, 2, 3, 4, 5]
    assert "more" not in read[1]["tokens_by_source"] and set(read[2]["tokens_by_source"]) == set(weights)
    assert sum(line["tokens_by_source"]["more"] for line in read[2:]) == pytest.approx(3 * 256 / 2, rel=0.2)
    (changed,) = events(added, "config_changed")
    assert "data.sources.more" in changed["changes"]
    with pytest.raises(ConfigError, match=r"these keys cannot change in it: data\.sources\.more: .* -> None; set them"):
        train(make_run(EVERY_STEP | {"train.total_tokens": 256 * 6}))


def limited(make_run, **changes) -> Config:
    """A run whose source `prep` may be read 11 times a window, of half of the examples."""
    windows = opened(make_run())["prep"].order(32).windows
    limits = {"data.sources.prep.max_epochs": 11.5 / windows}
    rate = {"schedule.warmup_tokens": 256, "schedule.decay_tokens": 256}
    mixture = [{"tokens": 256 * 9, "weights": {"model": 1, "prep": 1}}]
    return make_run(EVERY_STEP | limits | rate | {"data.mixture": mixture} | changes)


def test_a_run_ends_where_a_source_is_used_up_and_says_so(make_run, capfd):
    config = limited(make_run)
    state = train(config)
    assert "mixture from step 4 on (end): all that may be read has been read" in capfd.readouterr().err
    rows = count_rows(config)
    assert rows["prep"] == 11 and 10 <= rows["model"] <= 12
    read = lines(config)
    assert read[-1]["step"] == 3 and read[-1]["tokens"] == 32 * sum(rows.values())
    assert read[-1]["learning_rate"] == pytest.approx(config.optimizer.lr * config.schedule.final_ratio)
    assert [event["why"] for event in events(config, "mixture")] == ["end"] and events(config, "finished")
    train(config)
    assert "is finished: step 3" in capfd.readouterr().err
    again = limited(make_run, **{"data.sources.prep.max_epochs": None})
    train(again)
    # The steps go on with full batches behind the last one, which was filled up.
    assert [line["tokens"] - read[-1]["tokens"] for line in lines(again)[3:]] == [256 * step for step in range(1, 8)]
    assert int(state.window.accepted) == 3


def count_rows(config: Config) -> dict[str, int]:
    batches, names = global_batches(config), list(config.data.sources)
    rows = [names[s] for b in batches for s, real in zip(b["sources"], b["weights"].any(1), strict=True) if real]
    return {name: rows.count(name) for name in names}


def test_a_run_goes_on_without_a_source_that_is_used_up(make_run):
    config = limited(make_run, **{"data.exhausted": "renormalise"})
    state = train(config)
    assert count_rows(config) == {"model": 72 - 11, "prep": 11}
    (event,) = events(config, "mixture")
    assert (event["why"], event["shares"], event["step"]) == ("exhausted", {"model": 1.0}, 2)
    assert int(state.window.accepted) == 9 - 2  # other data, other losses: no spike


def test_a_run_that_is_wound_back_before_the_shapes_it_began_with_compiles_those_too(make_run, programs):
    with Run(make_run(EVERY_STEP), jax.devices()[:1]) as run:
        _, position, _ = run.restore(print)
        steps = run.compile(replace(position, step=10))
        assert callable(steps[SHAPES[2]]) and programs == [SHAPES[2]]
        assert callable(steps[SHAPES[0]]) and programs == [SHAPES[2], SHAPES[0]]

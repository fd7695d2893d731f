"""A run whose stages have steps of several shapes: totals are sums, and what fits is the largest."""

import json

import pytest
from shard_files import documents_of_random_lengths, write_directory
from tiny import run_config

from maxlm.config import Config
from maxlm.errors import ConfigError, DoesNotFitError
from maxlm.parallel.hardware import system
from maxlm.plan import memory, roofline
from maxlm.plan.plan import GIB, make_plan
from maxlm.plan.search import estimated
from maxlm.plan.space import candidates, check_layout, needed_bytes
from maxlm.plan.stages import laid_out
from maxlm.plan.tables import tables
from maxlm.report.terminal import console

MODEL = {"vocab_size": 4096, "embed_dim": 1024, "num_layers": 6, "mlp_dim": 3072, "num_heads": 8, "head_dim": 128}
V5P = system("v5p:2x2x2")
STAGES = [
    {"tokens": 2**30 + 1024 * 100, "weights": {"web": 3, "code": 1}},
    {"tokens": 2**28, "weights": {"code": 1}, "seq_len": 8192, "batch_tokens": 2**22},
    {"tokens": 2**26, "weights": {"web": 1}},
]


def config_of(stages=STAGES, **sections) -> Config:
    data = {"seq_len": 1024, "mixture": stages, "sources": {"web": {"path": "nowhere"}, "code": {"path": "nowhere"}}}
    values = {"mesh": {"fsdp": 8}, "data": data, "train": {"batch_tokens": 2**20}, "model": MODEL}
    return run_config(**values | {"remat": {"policy": "full"}} | sections)


def seconds_of(config: Config, batch_size: int, seq_len: int) -> float:
    return roofline.predict(config.with_shape(batch_size, seq_len), V5P).step_seconds


def text_of(plan, width: int = 140) -> str:
    screen = console()
    screen.width = width
    with screen.capture() as captured:
        screen.print(tables(plan))
    return captured.get()


def test_days_and_cost_are_those_of_all_steps() -> None:
    config = config_of(hardware={"price_per_chip_hour": 4.2})
    plan = make_plan(config, V5P)
    # 1,025 steps and one of 100 examples that is filled up, 64 longer ones, and 64 more.
    short, long = seconds_of(config, 1024, 1024), seconds_of(config, 512, 8192)
    assert {steps.config.data.seq_len: steps.count for steps in plan.shapes} == {1024: 1024 + 1 + 64, 8192: 64}
    assert plan.days == pytest.approx(((1024 + 1 + 64) * short + 64 * long) / 86400)
    assert plan.cost == pytest.approx(plan.days * 24 * 8 * 4.2)
    assert make_plan(config_of(), V5P).cost is None
    found = plan.to_json()
    assert found["predicted"]["days"] == plan.days and found["predicted"]["step_seconds"] == short
    assert [(shape["batch_size"], shape["seq_len"], shape["steps"]) for shape in found["shapes"]] == [
        (1024, 1024, 1089),
        (512, 8192, 64),
    ]
    assert sum(part["tokens"] for part in found["mixture"]["parts"]) == plan.mixture.tokens
    json.dumps(found)


def test_a_run_of_one_shape_takes_its_steps_times_their_seconds() -> None:
    config = config_of([{"tokens": 10 * 2**20 + 1, "weights": {"web": 1}, "seq_len": 2048}])
    plan = make_plan(config, V5P)
    (steps,) = plan.shapes
    assert (steps.count, steps.config.data.seq_len, steps.config.batch_size) == (11, 2048, 512)
    assert plan.days == pytest.approx(11 * seconds_of(config, 512, 2048) / 86400)
    assert "steps of the run by shape" not in text_of(plan)


def test_the_stages_beyond_the_runs_length_take_no_time_but_their_memory() -> None:
    plan = make_plan(config_of(train={"batch_tokens": 2**20, "total_tokens": 2**25}), V5P)
    assert [(steps.config.data.seq_len, steps.count) for steps in plan.shapes] == [(1024, 32), (8192, 0)]
    assert plan.days == pytest.approx(32 * plan.main.predicted.step_seconds / 86400)
    assert plan.largest.config.data.seq_len == 8192


def test_what_fits_is_the_largest_step() -> None:
    config = config_of()
    plan = make_plan(config, V5P)
    sizes = [sum(memory.estimate(roofline.layout_for(steps.config, V5P)).values()) for steps in plan.shapes]
    assert plan.largest is plan.shapes[1] and sizes[1] > sizes[0]
    assert needed_bytes(config, V5P) == sizes[1] and plan.largest.needed_gib == pytest.approx(sizes[1] / GIB)
    too_large = [STAGES[0], STAGES[1] | {"batch_tokens": 2**28}, STAGES[2]]
    large = make_plan(config_of(too_large, logging={"every_steps": 1}), V5P)
    assert large.main.needed_gib < large.available_gib < large.largest.needed_gib
    assert not large.fits and "does not fit" in text_of(large)
    with pytest.raises(DoesNotFitError, match=f"needs {large.largest.needed_gib:.1f} of"):
        large.check_fit()


def test_tables_show_every_shape_and_the_mixture() -> None:
    out = text_of(make_plan(config_of(), V5P))
    for text in ("steps of the run by shape", "512 x 8,192", "1,153", "the tables are for these steps",
                 "mixture: 1,153 steps", "not here: web, code", "924 empty examples"):  # fmt: skip
        assert text in out, text


def test_a_shape_that_does_not_divide_is_refused() -> None:
    stages = [*STAGES, {"tokens": 2**20, "weights": {"web": 1}, "seq_len": 8192, "batch_tokens": 8192 * 12}]
    with pytest.raises(
        ConfigError, match=r"data\.mixture\[3\]\.batch_tokens: .* 12 examples of 8192, not divisible by mesh.fsdp = 8"
    ):
        make_plan(config_of(stages), V5P)


def test_a_search_takes_meshes_that_every_shape_can_have_and_scores_the_one_with_most_slots() -> None:
    stages = [*STAGES, {"tokens": 2**20, "weights": {"web": 1}, "seq_len": 8192, "batch_tokens": 8192 * 4}]
    config = config_of(stages)
    found = list(candidates(config, V5P))
    assert found and all(4 % variant.train.accumulate == 0 for variant in found)
    for variant in found:
        check_layout(variant, V5P)
    ordered, legal = estimated(config, V5P)
    assert legal == len(found) and {candidate.shape for candidate in ordered} == {(1024, 1024)}
    best = ordered[0]
    assert best.predicted == roofline.predict(best.config.with_shape(1024, 1024), V5P)
    assert best.memory_gib == needed_bytes(best.config, V5P) / GIB


def test_data_that_are_here_give_epochs_and_say_where_they_end(tmp_path) -> None:
    write_directory(tmp_path / "web", documents_of_random_lengths(0, 400))
    sources = {"web": {"path": str(tmp_path / "web"), "max_epochs": 2}, "code": {"path": "nowhere"}}
    stages = [{"tokens": 16 * 8 * 10_000, "weights": {"web": 1, "code": 1}}]
    config = run_config(data={"sources": sources, "mixture": stages, "exhausted": "renormalise"})
    found = laid_out(config)
    first, then = found.parts
    assert found.unknown == ("code",) and first.epochs == {"web": 2} and then.used_up == ("web",)
    assert then.read.keys() == {"code"} and found.tokens == 16 * 8 * 10_000

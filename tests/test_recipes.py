"""The continuations that stand ready: a run reads what its pipeline writes, and goes on from its base's model."""

from pathlib import Path

import pytest

from data_prep.config import Pipeline
from maxlm.config import Config, load
from maxlm.train.initial import OTHERS
from maxlm.train.resume import differences

CONFIGS = Path(__file__).parents[1] / "configs"
# Run, its base, the pipeline of its data, and that of the base.
RECIPES = [
    ("continue-chinese", "quickstart", "continue-chinese", "quickstart"),
    ("long-context", "quickstart", "long-context", "quickstart"),
    ("llama3-syne", "llama3-syne-base", "llama3-syne", "llama3-syne-base"),
]
REAL = ["llama3-8b-syne-v5p-128", "llama3-8b-128k-v5p-128"]


def run_of(name: str) -> Config:
    return load(CONFIGS / "runs" / f"{name}.yaml", [])


def pipeline_of(name: str) -> Pipeline:
    return load(CONFIGS / "prep" / f"{name}.yaml", [], Pipeline)


def model_changes(base: Config, run: Config) -> dict:
    before, now = (config.model.model_dump(mode="json") for config in (base, run))
    return {key: change for key, change in differences(before, now).items() if key.partition(".")[0] not in OTHERS}


@pytest.mark.parametrize(("run", "base", "prep", "base_prep"), RECIPES, ids=lambda name: name)
def test_a_continuation_fits_its_base_and_its_data(run: str, base: str, prep: str, base_prep: str) -> None:
    config, before, pipeline, earlier = run_of(run), run_of(base), pipeline_of(prep), pipeline_of(base_prep)
    assert config.init.path == str(before.run_dir)
    extend = pipeline.tokenizer.extend
    pieces = extend.pieces if extend else 0
    assert config.init.vocabulary == ("extended" if pieces else "same")
    assert config.model.vocab_size == before.model.vocab_size + pieces
    assert set(model_changes(before, config)) == ({"vocab_size"} if pieces else set())
    assert earlier.tokenizer.vocab_size == before.model.vocab_size
    written = {f"{earlier.output}/{name}" for name in earlier.ingest.sources}
    assert pipeline.tokenizer.path in written
    assert {one.path for one in before.data.sources.values()} <= written


@pytest.mark.parametrize(("run", "base", "prep", "base_prep"), RECIPES, ids=lambda name: name)
def test_a_continuation_reads_what_its_pipeline_writes(run: str, base: str, prep: str, base_prep: str) -> None:
    config, pipeline = run_of(run), pipeline_of(prep)
    for name, source in config.data.sources.items():
        assert name in pipeline.ingest.sources and source.path == f"{pipeline.output}/{name}"
        assert config.data.validation[name].path == f"{source.path}-val"
    assert "old" in {held_out.domain for held_out in config.data.validation.values()}
    # Held out are the same documents as of the base: their ids begin with the source's name where they have none.
    shared = set(pipeline.ingest.sources) & set(pipeline_of(base_prep).ingest.sources)
    assert shared and pipeline.validation == pipeline_of(base_prep).validation
    ordered = pipeline.shards.order.sources if pipeline.shards.order else []
    assert [name for name, source in config.data.sources.items() if source.order == "as_written"] == ordered


@pytest.mark.parametrize("name", [*(recipe[0] for recipe in RECIPES), *REAL])
def test_a_continuation_warms_up_again_and_ends_below_its_peak(name: str) -> None:
    config = run_of(name)
    schedule = config.schedule
    assert 0 < schedule.initial_ratio < 1 and schedule.final_ratio < 1 and config.init.optimizer == "fresh"
    decay = schedule.decay_tokens or 0
    assert schedule.warmup_tokens > 2 * config.train.batch_tokens
    assert schedule.warmup_tokens + decay < config.total_tokens
    assert config.total_tokens / config.train.batch_tokens >= 10

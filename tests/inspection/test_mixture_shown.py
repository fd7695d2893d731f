"""`maxlm inspect --mixture`: what the whole run reads, with its data or without."""

import json
import re

import numpy as np

from maxlm.config import to_yaml
from maxlm.train.position import Position, layout


def test_the_mixture_is_counted_and_drawn(standing, answer, inspect):
    found = answer(standing.dir, "--mixture")
    assert [part["why"] for part in found["parts"]] == ["start", "rewind", "stage"]
    assert (found["steps"], found["tokens"], found["without_data"]) == (48, 22368, [])
    assert sum(found["tokens_by_source"].values()) == found["tokens"] == sum(part["tokens"] for part in found["parts"])
    start, back, stage = found["parts"]
    assert (start["steps"], back["steps"], stage["steps"]) == ([1, 5], [6, 8], [9, 48])
    assert start["undone_examples"] == 16 and back["empty_examples"] == 5 and stage["seq_len"] == 64
    assert set(stage["abandoned_tokens"]) == {"model", "prep"}
    schedule = Position.from_json(standing.position.to_json()).schedule
    assert stage["tokens_by_source"] == {
        name: (schedule.segments[-1].read(320)[name] - schedule.segments[-1].offsets[name]) * 64
        for name in ("model", "prep")
    }
    code, out, _ = inspect(standing.dir, "--mixture")
    assert code == 0
    for text in ("mixture: 48 steps, 22,368 tokens; 12 steps are done", "A model", "B prep", "|1", "5 empty examples",
                 "undone by a rewind: 16 examples", "abandoned at step 9"):  # fmt: skip
        assert text in out
    rows = [
        line[5:].strip() for line in out.splitlines() if set(line[5:].strip()) and set(line[5:].strip()) <= {"A", "B"}
    ]
    assert len(rows) == 12 and {len(row) for row in rows} == {72}
    assert rows[0] == "A" * 72 and rows[-1] == "B" * 72


def test_the_mixture_of_data_that_are_not_here_has_no_epochs(standing, make_config, answer, inspect, tmp_path):
    nowhere = {"model": {"path": "/nowhere/model"}, "prep": {"path": "/nowhere/prep", "max_epochs": 1}}
    config = make_config({"data.mixture": standing.config.model_dump(mode="json")["data"]["mixture"]})
    path = tmp_path / "laptop.yaml"
    path.write_text(to_yaml(config.model_copy(update={"data": config.data.model_copy(update={"sources": {}})})))
    words = (path, f"data.sources={json.dumps(nowhere)}", "name=laptop", "--mixture")
    found = answer(*words)
    assert found["without_data"] == ["model", "prep"] and all(part["epochs"] == {} for part in found["parts"])
    there = layout(config, standing.sources.train).begin()
    assert found["steps"] == there.steps(config.total_tokens)
    assert "not here: model, prep; epochs, and where data run out, need the data" in inspect(*words)[1]


def test_where_data_run_out_is_told(make_config, inspect, answer, tmp_path):
    for exhausted, message in [
        ("stop", "the run ends with"),
        ("renormalise", "the others go on with their shares"),
    ]:
        config = make_config({"data.exhausted": exhausted, "train.total_tokens": 10**7}, name=exhausted)
        path = tmp_path / f"{exhausted}.yaml"
        path.write_text(to_yaml(config))
        code, out, _ = inspect(path, "data.sources.prep.max_epochs=1", "--mixture")
        out = " ".join(out.split())
        assert code == 0 and "data run out at token" in out and message in out
        assert "prep has been read 1 times" in out and f"data.exhausted: {exhausted}" in out
        found = answer(path, "data.sources.prep.max_epochs=1", "--mixture")
        (after,) = [part for part in found["parts"] if part["used_up"]]
        assert after["used_up"] == ["prep"] and after["why"] == ("end" if exhausted == "stop" else "exhausted")
        assert found["parts"][0]["epochs"]["prep"] == 1


def test_any_number_of_online_segments_is_shown_as_one(stand, answer, inspect):
    def story(laid):
        schedule = laid.begin()
        for step in range(2, 300, 2):
            schedule = laid.weighted({"model": 1 + np.sin(step), "prep": 1}).reweigh(schedule, step)
        return Position(0, 0, 0, 0, schedule)

    run = stand([{"tokens": 256 * 400, "weights": {"model": 3, "prep": 1}}], story)
    assert len(answer(run.dir, "--mixture")["parts"]) == 150
    out = inspect(run.dir, "--mixture")[1]
    assert out.count("online") == 1 and re.search(r"│ +3 │ +400 │.*online", out)

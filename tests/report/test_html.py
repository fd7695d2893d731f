import json
import math
import re

import numpy as np
import pytest

from maxlm.errors import DataError
from maxlm.report.charts import POINTS, bucket_means, build_charts, downsample, event_text
from maxlm.report.html import write_report
from maxlm.report.metrics import EVENTS, METRICS
from maxlm.report.runs import config_differences, read_runs

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def eval_line(step: int, source: str, loss: float) -> dict:
    sizes = {"target_tokens": 1000, "bytes": 4000, "seconds": 0.1, "goodput": 0.9}
    return {"step": step, "tokens": step * 4096, "source": source, "loss": loss, "bits_per_byte": loss / 3} | sizes


def page_data(page: str) -> dict:
    """The data that the page's script draws."""
    return json.loads(page.split('id="data">', 1)[1].split("</script>", 1)[0])


def report(*run_dirs) -> str:
    out = run_dirs[0] / "report.html"
    assert write_report(run_dirs, out) == out
    return out.read_text()


def own_part(page: str) -> str:
    """The page without the plotting library."""
    return "".join(part for part in re.split(r"(?=<script>)", page) if len(part) < 1_000_000)


def tiles(page: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)<", page))


def charts_of(*run_dirs) -> dict[str, dict]:
    return {chart["title"]: chart for _, charts in build_charts(read_runs(run_dirs)) for chart in charts}


def test_the_page_loads_nothing(make_run):
    page = report(make_run())
    assert "default-src 'none'" in page
    assert "connect-src" not in page
    assert not re.search(r"<(link|iframe|object|embed|base)\b|@import|url\(", own_part(page))
    assert not re.search(r"""(src|href)\s*=|https?://""", own_part(page))


def test_text_of_the_user_cannot_become_markup(make_run):
    events = [("stopped", 20, {"reason": HOSTILE}), (HOSTILE, 30, {})]
    run = make_run("a&<b>x", evals=[eval_line(10, HOSTILE, 3.0)], events=events, config=f"name: {HOSTILE!r}\n")
    page = own_part(report(run))
    assert "<img" not in page and "<b>x" not in page and "<script>alert" not in page
    assert "a&amp;&lt;b&gt;x" in page and "&lt;img src=x" in page
    assert page.count("</script>") == page.count("<script")
    assert page_data(page)["events"][0]["text"] == f"reason: {HOSTILE}"


def test_every_run_is_in_the_page(make_run):
    runs = [make_run(name, steps=range(10, 100, 10)) for name in ("first", "second", "third")]
    page = own_part(report(*runs))
    data = page_data(page)
    assert [run["label"] for run in data["runs"]] == ["first", "second", "third"]
    loss = next(chart for chart in data["charts"] if chart["title"] == "Training loss")
    assert [trace["run"] for trace in loss["traces"]] == [0, 1, 2]
    assert all(f">{name}<" in page for name in ("first", "second", "third"))


def test_runs_of_one_name_are_told_apart_by_their_path(make_run):
    labels = [run.label for run in read_runs([make_run("a/demo"), make_run("b/demo"), make_run("other")])]
    assert labels[0].endswith("a/demo") and labels[1].endswith("b/demo") and labels[2] == "other"


def test_the_summary_shows_the_figures_of_the_run(make_run):
    evals = [eval_line(10, "web", 4.0), eval_line(10, "code", 2.0) | {"target_tokens": 3000, "bytes": 12000}]
    evals += [eval_line(20, "web", 5.0), eval_line(20, "code", 3.0)]
    page = report(make_run(evals=evals, events=[("finished", 30, {"goodput": 0.875, "seconds": 17.0})]))
    figures = tiles(page)
    assert figures["Parameters"] == "1.2M" and figures["Tokens"] == "122.9K" and figures["Steps"] == "30"
    assert figures["Training loss"] == f"{9.0 / 1.3:.4f}"
    # Step 10 is best: (4 x 1000 + 2 x 3000) / 4000 nats, and a third of that in bits per byte.
    assert figures["Validation loss"] == "2.5000" and figures["Perplexity"] == f"{math.exp(2.5):.2f}"
    assert figures["Bits per byte"] == f"{2.5 / 3:.4f}"
    assert figures["Goodput"] == "87.5%" and figures["Tokens/s"] == "8,192" and figures["MFU"] == "–"
    assert figures["Time in steps"] == "15s"


def test_the_final_training_loss_is_a_mean_of_finite_values(make_run):
    run = make_run(steps=range(1, 31))
    path = run / METRICS
    path.write_text(path.read_text() + '{"step": 31, "loss": null, "nonfinite": ["loss"]}\n')
    expected = sum(9.0 / (1 + step / 100) for step in (28, 29, 30)) / 3
    assert tiles(report(run))["Training loss"] == f"{expected:.4f}"


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        ([], "unfinished"),
        (["finished", "checkpoint"], "finished"),
        (["preempted"], "preempted"),
        (["preempted", "resumed"], "unfinished"),
        (["resumed", "diverged"], "diverged"),
    ],
)
def test_the_status_is_that_of_the_last_start_or_end(make_run, kinds, status):
    run = make_run(events=[(kind, 30, {}) for kind in kinds])
    assert f'class="status {status}"' in report(run)


@pytest.mark.parametrize("steps", [(), (10,), range(1, 4000)], ids=len)
def test_a_run_of_any_length_without_evaluation_makes_a_page(make_run, steps):
    run = make_run(steps=steps)
    assert ("No step has been logged yet" in report(run)) == (len(steps) == 0)
    assert "Validation loss" not in charts_of(run)
    assert all(len(trace["y"]) <= POINTS for chart in charts_of(run).values() for trace in chart["traces"])


def test_a_value_that_was_not_finite_is_a_gap(make_run):
    run = make_run(steps=[10])
    path = run / METRICS
    path.write_text(path.read_text() + '{"step": 20, "loss": null, "nonfinite": ["loss"]}\n{"step": 30, "loss": 2.0}\n')
    trace = charts_of(run)["Training loss"]["traces"][0]
    assert trace["step"] == [10, 20, 30] and trace["y"][1:] == [None, 2.0]


def test_a_chart_without_values_is_left_out_and_an_unknown_number_gets_one(make_run):
    run = make_run(steps=[10])
    path = run / METRICS
    path.write_text(path.read_text().replace('"step": 10', '"step": 10, "router_balance": 1.5'))
    charts = charts_of(run)
    assert "Model FLOPs utilisation" not in charts and "Skipped steps" not in charts
    assert charts["router_balance"]["traces"][0]["y"] == [1.5]


def test_experts_and_a_pipeline_have_charts_where_a_run_has_them(make_run):
    dense, routed = make_run("dense", steps=[10, 20]), make_run("routed", steps=[10, 20])
    for run, fields in (
        (dense, {"bubble": 0.0}),
        (routed, {"bubble": 0.2, "expert_max_load": 1.5, "expert_dropped": 0}),
    ):
        path = run / METRICS
        path.write_text("".join(json.dumps(json.loads(line) | fields) + "\n" for line in path.read_text().splitlines()))
    assert not {"Expert load", "Dropped assignments", "Pipeline bubble", "bubble"} & set(charts_of(dense))
    charts = charts_of(dense, routed)
    assert [(trace["run"], trace["y"]) for trace in charts["Expert load"]["traces"]] == [(1, [1.5, 1.5])]
    assert [trace["y"] for trace in charts["Pipeline bubble"]["traces"]] == [[0, 0], [0.2, 0.2]]
    assert "Dropped assignments" not in charts and not {"expert_max_load", "expert_dropped", "bubble"} & set(charts)


def test_parameters_that_a_token_meets_are_told_where_they_are_fewer(make_run):
    run = make_run()
    path = run / EVENTS
    assert "met by a token" not in report(run)
    path.write_text(path.read_text().replace('"parameters"', '"active_parameters": 234567, "parameters"'))
    assert "<dd>1.2M<small>234.6K met by a token</small>" in report(run)


def test_shares_of_the_mixture_sum_to_one(make_run):
    traces = charts_of(make_run(steps=range(1, 1000)))["Tokens by source"]["traces"]
    assert [trace["name"] for trace in traces] == ["web", "code"]
    np.testing.assert_allclose(np.sum([trace["y"] for trace in traces], axis=0), 1.0)
    np.testing.assert_allclose(traces[0]["y"], 0.75)


def test_averaged_parameters_are_dashed_curves_of_their_own(make_run):
    evals = [eval_line(step, "web", 4.0 - step / 10) | more for step in (10, 20) for more in ({}, {"weights": "ema"})]
    one, two = make_run("one", evals=evals), make_run("two", evals=evals[:1])
    traces = charts_of(one)["Validation loss"]["traces"]
    assert [(trace["name"], trace.get("dash")) for trace in traces] == [("web", None), ("web (ema)", "dash")]
    assert traces[0]["colour"] == traces[1]["colour"] and "source" not in traces[1]
    traces = charts_of(one, two)["Validation loss"]["traces"]
    assert [(trace["run"], trace["source"]) for trace in traces] == [(0, "web"), (0, "web (ema)"), (1, "web")]
    assert traces[0]["dash"] == traces[2]["dash"] != traces[1]["dash"]
    assert ">web (ema)<" in report(one)


def test_held_out_sources_that_dashes_cannot_tell_apart_have_small_charts(make_run):
    evals = [eval_line(step, f"held{number}", 1.0 + number) for step in (10, 20) for number in range(7)]
    one, two = make_run("one", evals=evals), make_run("two", evals=evals)
    assert len(charts_of(one)["Validation loss"]["traces"]) == 7
    charts = charts_of(one, two)
    assert "Validation loss" not in charts
    for number in range(7):
        chart = charts[f"Validation loss: held{number}"]
        assert chart["small"] and [trace["run"] for trace in chart["traces"]] == [0, 1]
        assert all(trace["y"] == [1.0 + number] * 2 for trace in chart["traces"])


def test_a_run_that_has_only_been_evaluated_has_a_place_for_it(make_run):
    data = page_data(report(make_run(steps=(), evals=[eval_line(0, "web", 4.0)])))
    assert data["runs"][0]["knots"] == {"step": [0], "tokens": [0], "hours": [0]}
    assert data["charts"][0]["traces"][0]["step"] == [0]


def test_weights_of_a_dynamic_mixture_have_a_chart_where_a_run_has_them(make_run):
    fixed, dynamic = make_run("fixed"), make_run("dynamic", steps=[10, 20])
    path = dynamic / METRICS
    fields = [
        {"mixture_weights": {"web": 0.5, "code": 0.5}},
        {"mixture_weights": {"web": 0.75, "code": 0.25}, "excess_by_source": {"web": 0.25}},
    ]
    lines = zip(path.read_text().splitlines(), fields, strict=True)
    path.write_text("".join(json.dumps(json.loads(line) | more) + "\n" for line, more in lines))
    assert not {"Mixture weights", "Excess loss by source"} & set(charts_of(fixed))
    charts = charts_of(fixed, dynamic)
    found = {(trace["run"], trace["source"]): trace["y"] for trace in charts["Mixture weights"]["traces"]}
    assert found == {(1, "web"): [0.5, 0.75], (1, "code"): [0.5, 0.25]}
    assert [trace["y"] for trace in charts["Excess loss by source"]["traces"]] == [[None, 0.25]]


def test_downsampling_keeps_extremes_gaps_and_ends():
    random = np.random.default_rng(0)
    y = random.normal(size=100_003)
    y[[5, 77_777]] = [50.0, -50.0]
    y[[1234, 60_000]] = np.nan
    kept = downsample(y)
    assert len(kept) <= POINTS and np.all(np.diff(kept) > 0)
    assert {0, 5, 1234, 60_000, 77_777, 100_002} <= set(kept.tolist())


@pytest.mark.parametrize("n", [1, 2, POINTS])
def test_what_fits_is_not_downsampled(n):
    assert downsample(np.zeros(n)).tolist() == list(range(n))


def test_means_of_buckets_skip_gaps():
    step, y = np.arange(8.0), np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan, 2.0, 2.0])
    means = bucket_means(step, y, points=4)
    assert means[0].tolist() == [0.5, 2.5, 4.5, 6.5]
    np.testing.assert_array_equal(means[1], [2.0, 5.0, np.nan, 2.0])


def test_only_the_keys_that_differ_are_listed(make_run):
    config = "name: demo\noptimizer: {name: adamw, lr: 0.001}\n"
    other = config.replace("adamw", "muon") + "extra: [1, {a: 2}]\n"
    runs = read_runs([make_run("one", config=config), make_run("two", config=other)])
    assert config_differences(runs) == [("optimizer.name", ["adamw", "muon"]), ("extra", ["", "[1, {a: 2}]"])]


def test_an_event_of_any_kind_is_shown_with_its_fields(make_run):
    fields = {"from_step": 1200, "changes": ["lr: 1 -> 2"], "mesh": {"fsdp": 8}, "permanent": True}
    run = make_run(events=[("moved", 20, fields)])
    text = event_text(read_runs([run])[0].events[-1])
    assert text == "from_step: 1,200 · changes: lr: 1 -> 2 · mesh: fsdp 8 · permanent: yes"
    page = own_part(report(run))
    assert [event["kind"] for event in page_data(page)["events"]] == ["moved"]
    assert ">moved<" in page


def test_many_events_alike_are_one_row(make_run):
    run = make_run(events=[("checkpoint", step, {"seconds": 1.0}) for step in range(100, 1100, 100)])
    page = own_part(report(run))
    assert page.count(">checkpoint<") == 1 and "10 times, from step 100 to 1,000" in page


def test_a_directory_that_is_no_run_is_named(make_run, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such run directory"):
        write_report([make_run(), tmp_path / "nowhere"], tmp_path / "report.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: has no metrics\.jsonl"):
        write_report([tmp_path / "empty"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_same_run_gives_the_same_page(make_run):
    run = make_run(evals=[eval_line(10, "web", 3.0)])
    assert report(run) == report(run)

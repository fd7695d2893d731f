"""Tasks in the report: series of what may be compared, charts, and the table of the last values."""

import math
import re

import pytest

from maxlm.report.evaluations import MAIN, held_out, metrics, tasks
from maxlm.report.html import write_report
from maxlm.report.runs import read_runs
from maxlm.report.tasks_page import read_tasks, task_charts, tasks_lead, tasks_tables

HOSTILE = "<script>alert('x')</script>"


def task_line(
    step: int, task: str = "rivers", settings: dict | None = None, errors: bool = True, **values: float
) -> dict:
    settings = {"kind": "lm-eval", "limit": None} | (settings or {})
    line = {"step": step, "tokens": step * 4096, "task": task, "metrics": values, "items": 100, "settings": settings}
    return line | ({"stderr": dict.fromkeys(values, 0.01)} if errors else {})


def charts_of(*run_dirs) -> dict[tuple[str, str], dict]:
    return {(chart["title"], chart["note"]): chart for chart in task_charts(read_runs(run_dirs))}


def rows(html: str, hidden: bool = False) -> list[list[str]]:
    """The cells of the rows that are shown (or hidden), as text."""
    found = [
        re.findall(r"<td[^>]*>(.*?)</td>", row)
        for attributes, row in re.findall(r"<tr([^>]*)>(.*?)</tr>", html)
        if ("hidden" in attributes) == hidden
    ]
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in found if row]


def test_task_lines_are_no_sources(make_run):
    source = {"step": 10, "source": "web", "loss": 2.0, "bits_per_byte": 1.0, "target_tokens": 10, "bytes": 20}
    run = read_runs([make_run(evals=[source, task_line(10, acc=0.5), source | {"weights": "ema", "loss": 1.0}])])[0]
    assert run.eval_sources == ["web"] and [one.label for one in run.held_out] == ["web", "web (ema)"]
    assert run.validation == [(10, 2.0, 1.0)]  # of the parameters
    assert [one.name for one in run.tasks] == ["rivers"]


def test_steps_out_of_order_are_sorted_and_the_newest_line_of_a_step_counts():
    lines = [task_line(30, acc=0.3), task_line(10, acc=0.1), task_line(20, acc=0.9), task_line(20, acc=0.2)]
    lines += [task_line(20, settings={"limit": 5}, acc=0.7), task_line(20, acc=0.8) | {"weights": "ema"}]
    found = {(one.label, one.settings["limit"]): one for one in tasks(lines)}
    assert set(found) == {("rivers", None), ("rivers", 5), ("rivers (ema)", None)}
    plain = found["rivers", None]
    assert plain.steps.tolist() == [10, 20, 30] and plain.column("metrics", "acc").tolist() == [0.1, 0.2, 0.3]
    assert [line["step"] for line in plain.until(20).lines] == [10, 20]
    again = [{"step": step, "source": "web", "loss": loss} for step, loss in ((5, 1.0), (2, 3.0), (5, 2.0))]
    assert held_out(again)[0].column("loss").tolist() == [3.0, 2.0] and tasks(again) == []


@pytest.mark.parametrize("number", range(len(MAIN)))
def test_the_main_metric_is_the_first_of_the_known_ones(number):
    values = {"other": 1.0} | {name: 0.5 for name in reversed(MAIN[number:])} | {f"{MAIN[number]},flexible": 0.1}
    assert metrics(tasks([task_line(1, **values)]))[0] == MAIN[number]


def test_settings_that_differ_are_compared_apart(make_run):
    short = {"limit": 100, "hash": "a"}
    runs = [
        make_run("one", evals=[task_line(step, acc=0.1 * step) for step in (1, 2)]),
        make_run(
            "two", evals=[task_line(step, settings=settings, acc=0.2) for step in (1, 2) for settings in ({}, short)]
        ),
    ]
    charts = charts_of(*runs)
    assert set(charts) == {("rivers", "limit none, hash none"), ("rivers", "limit 100, hash a")}
    assert [trace["run"] for trace in charts["rivers", "limit none, hash none"]["traces"]] == [0, 1]
    assert [trace["run"] for trace in charts["rivers", "limit 100, hash a"]["traces"]] == [1]


def test_a_chart_has_every_metric_with_its_errors_and_shows_the_main_one_first(make_run):
    settings = {"chance": 0.25}
    evals = [task_line(step, settings=settings, acc=0.2 + step / 10, acc_norm=0.3) for step in (2, 1)]
    evals += [line | {"weights": "ema"} for line in evals]
    run = make_run(evals=evals)
    chart = charts_of(run)["rivers", ""]
    assert chart["main"] == "acc_norm" and chart["small"]
    assert chart["levels"] == [{"y": 0.25, "text": "chance", "metric": metric} for metric in ("acc_norm", "acc")]
    lead = tasks_lead(read_runs([run]))
    assert "bars: one standard error" in lead and "dashed: averaged parameters" in lead
    traces = {(trace["metric"], trace.get("dash")): trace for trace in chart["traces"]}
    assert set(traces) == {(metric, dash) for metric in ("acc", "acc_norm") for dash in (None, "dash")}
    assert traces["acc", None]["step"] == [1, 2] and traces["acc", None]["y"] == pytest.approx([0.3, 0.4])
    assert traces["acc", None]["error"] == [0.01, 0.01] and traces["acc", "dash"]["name"] == "acc (ema)"


def test_a_task_measured_once_is_in_the_table_alone(make_run):
    run = make_run(evals=[task_line(30, acc=0.5, errors=False)])
    assert charts_of(run) == {}
    assert rows(tasks_tables(read_runs([run]))) == [["rivers", "acc", "100", "0.5000 step 30"]]
    assert tasks_lead(read_runs([run])) == ""
    assert "bars" not in tasks_lead(read_runs([make_run("errors", evals=[task_line(30, acc=0.5, f1=0.5)])]))


def test_thirty_tasks_are_thirty_small_charts_in_the_order_of_their_names(make_run):
    evals = [task_line(step, f"task{number:02}", acc=0.5) for step in (1, 2) for number in reversed(range(30))]
    charts = task_charts(read_runs([make_run(evals=evals)]))
    assert [chart["title"] for chart in charts] == [f"task{number:02}" for number in range(30)]
    assert all(chart["small"] for chart in charts)


def test_the_table_has_last_values_with_errors_and_changes_since_the_first(make_run):
    one = [task_line(1, acc=0.25, perplexity=50.0), task_line(9, acc=0.375, perplexity=40.0)]
    one += [task_line(4, "lakes", acc=0.5), task_line(5, "lakes", acc=0.515)]
    two = [task_line(3, acc=0.5, perplexity=math.inf)]
    runs = read_runs([make_run("one", evals=one), make_run("two", evals=two)])
    html = tasks_tables(runs)
    assert rows(html) == [
        ["lakes", "acc", "100", "0.5150 ± 0.0100 +0.0150 since step 4 · step 5", "–"],
        ["rivers", "acc", "100", "0.3750 ± 0.0100 +0.1250 since step 1 · step 9", "0.5000 ± 0.0100 step 3"],
    ]
    assert rows(html, hidden=True) == [
        ["rivers", "perplexity", "100", "40.0000 ± 0.0100 -10.0000 since step 1 · step 9", "–"],
    ]
    # Coloured where it is more than two errors of the difference; less perplexity is better.
    assert re.findall(r'<b class="(\w+)">([^<]*)<', html) == [("good", "+0.1250"), ("good", "-10.0000")]
    assert "data-metric" in html and '<option value="perplexity">' in tasks_lead(runs)


def test_what_became_worse_is_told_as_such(make_run):
    evals = [task_line(1, acc=0.5, word_perplexity=9.0), task_line(2, acc=0.25, word_perplexity=12.0)]
    html = tasks_tables(read_runs([make_run(evals=evals)]))
    assert re.findall(r'<b class="(\w+)">([^<]*)<', html) == [("bad", "-0.2500"), ("bad", "+3.0000")]


def test_topics_of_a_task_have_a_table_of_their_own(make_run):
    topics = {"地理": {"items": 20, "acc": 0.5, "stderr": {"acc": 0.1}}, "history": {"items": 7, "acc": 0.25}}
    evals = [task_line(1, acc=0.25) | {"topics": {"地理": {"items": 20, "acc": 0.25, "stderr": {"acc": 0.1}}}}]
    evals += [task_line(2, acc=0.4) | {"topics": topics}, task_line(2, "lakes", acc=0.1)]
    html = tasks_tables(read_runs([make_run(evals=evals)]))
    assert html.count("<details") == 1 and "Topics of rivers" in html
    assert rows(html.split("<details")[1]) == [
        ["history", "acc", "7", "0.2500 step 2"],
        ["地理", "acc", "20", "0.5000 ± 0.1000 +0.2500 since step 1 · step 2"],
    ]


def test_chance_has_a_column_where_it_is_known(make_run):
    settings = {"chance": 0.25}
    runs = read_runs([make_run(evals=[task_line(1, settings=settings, acc=0.5), task_line(1, "lakes", f1=0.5)])])
    assert [row[3] for row in rows(tasks_tables(runs))] == ["–", "0.2500"]


def test_runs_without_tasks_have_no_section_and_names_stay_text(make_run, tmp_path):
    assert ">Tasks<" not in write_report([make_run("without")], tmp_path / "page.html").read_text()
    line = task_line(1, HOSTILE, settings={"limit": HOSTILE}, **{HOSTILE: 0.5, "acc": 0.5}) | {
        "topics": {HOSTILE: {HOSTILE: 1}}
    }
    run = make_run("with", evals=[line, line | {"step": 2}])
    page = write_report([run], tmp_path / "page.html").read_text()
    assert ">Tasks<" in page and page.count("<script>alert") == 0 and "&lt;script&gt;alert" in page
    assert [task.name for task in read_tasks(read_runs([run]))] == [HOSTILE]


def test_lines_that_lack_what_they_should_have_make_no_fault(make_run):
    lines = [task_line(1), task_line(2) | {"metrics": None}, task_line(3, acc=None), {"step": 4, "task": "bare"}]
    lines += [task_line(5, acc=0.5) | {"stderr": None, "topics": [1], "items": None}]
    run = make_run(evals=lines)
    assert rows(tasks_tables(read_runs([run]))) == [["rivers", "acc", "–", "0.5000 step 5"]]

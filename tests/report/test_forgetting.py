"""The picture of forgetting: held-out loss against a run's start, by domain."""

import re

import numpy as np
import pytest

from maxlm.report.forgetting import changes, forgetting_charts, forgetting_tables, forgotten, signed
from maxlm.report.html import write_report
from maxlm.report.runs import read_runs

BEGAN = {"from": "/somewhere/base/checkpoints/1200", "from_step": 1200}
BEGAN |= {"rows_kept": 300, "rows_new": 4000, "rows": "mean", "moments": "fresh"}
INITIALISED = [("initialised", 0, BEGAN)]
WIDE = "Forgetting and learning"


def held_out(step: int, source: str, bits: float | None, **more) -> dict:
    """A line whose loss per token moves otherwise than its bits per byte."""
    loss = None if bits is None else 9.0 - bits
    sizes = {"target_tokens": 1000, "bytes": 4000, "seconds": 0.1, "goodput": 0.9}
    return {"step": step, "tokens": step * 4096, "source": source, "loss": loss, "bits_per_byte": bits} | sizes | more


def config(**domains: str) -> str:
    sources = ", ".join(f"{name}: {{path: {name}-val, domain: {domain}}}" for name, domain in domains.items())
    return f"name: demo\ndata: {{validation: {{{sources}}}}}\n"


def lines(source: str, bits: dict[int, float], **more) -> list[dict]:
    return [held_out(step, source, value, **more) for step, value in bits.items()]


CODE, CHINESE = {0: 1.0, 10: 1.25, 20: 1.125}, {0: 4.0, 10: 3.0, 20: 2.5}
BOTH = [*lines("code", CODE), *lines("chinese", CHINESE)]
DOMAINS = config(code="old", chinese="new")


def charts_of(*run_dirs) -> dict[str, dict]:
    return {chart["title"]: chart for chart in forgetting_charts(read_runs(run_dirs))}


def values(chart: dict) -> dict[str, tuple[list, list]]:
    return {trace["name"]: (trace["step"], trace["y"]) for trace in chart["traces"]}


def rows(html: str) -> list[list[str]]:
    """The cells of every row of a table, as text."""
    found = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", html)]
    return [[re.sub(r"<[^>]+>", " ", cell).strip() for cell in row] for row in found]


def test_old_and_new_domains_are_drawn_against_the_base_line(make_run):
    charts = charts_of(make_run(evals=BOTH, events=INITIALISED, config=DOMAINS))
    assert list(charts) == [WIDE, "code", "chinese"]
    assert values(charts[WIDE]) == {
        "old domains (code)": ([0, 10, 20], [0, 0.25, 0.125]),
        "new domains (chinese)": ([0, 10, 20], [0, -1.0, -1.5]),
    }
    old, new = charts[WIDE]["traces"]
    assert old["dash"] != new["dash"] and old["colour"] != new["colour"]
    assert all([level["y"] for level in chart["levels"]] == [0] for chart in charts.values())
    assert [charts[name]["note"] for name in ("code", "chinese")] == ["old", "new"]
    assert values(charts["code"]) == {"code": ([0, 10, 20], [0, 0.25, 0.125])}


def test_runs_lie_over_each_other_by_colour_and_domains_by_dash(make_run):
    runs = [
        make_run(
            name,
            evals=[*lines("code", {0: 1.0, 20: bits}), *lines("chinese", CHINESE)],
            events=INITIALISED,
            config=DOMAINS,
        )
        for name, bits in (("none", 1.5), ("some", 1.25), ("half", 1.0))
    ]
    traces = charts_of(*runs)[WIDE]["traces"]
    assert [(trace["colour"], trace["source"]) for trace in traces] == [
        (number, f"{domain} domains") for number in range(3) for domain in ("old", "new")
    ]
    assert {trace["source"]: trace["dash"] for trace in traces} == {"old domains": "solid", "new domains": "dash"}
    assert [trace["y"][-1] for trace in traces if trace["dash"] == "solid"] == [0.5, 0.25, 0.0]
    table = rows(forgetting_tables(read_runs(runs)))
    assert table[0] == ["Run", "Began from", "Forgotten (old domains)", "Learned (new domains)"]
    assert [row[0] for row in table[1:4]] == ["none", "some", "half"]
    assert [row[2].split(" ")[0] for row in table[1:4]] == ["+0.5000", "+0.2500", "+0.0000"]
    assert all(row[3].startswith("+1.5000") for row in table[1:4])
    assert all("base at step 1,200" in row[1] and "4,000 rows new" in row[1] for row in table[1:4])


def test_ten_sources_and_six_runs_are_two_curves_a_run_and_a_chart_a_source(make_run):
    names = [f"{domain}{number}" for domain in ("old", "new") for number in range(5)]
    text = config(**{name: name[:3] for name in names})
    evals = [held_out(step, name, 1 + step * (1 + n)) for step in (0, 1) for n, name in enumerate(names)]
    charts = charts_of(*[make_run(f"run{n}", evals=evals, events=INITIALISED, config=text) for n in range(6)])
    assert list(charts) == [WIDE, *names]
    assert len(charts[WIDE]["traces"]) == 12 and all(len(charts[name]["traces"]) == 6 for name in names)
    assert all(charts[name]["small"] for name in names)
    # Means over sources whose changes are 1 to 5, and 6 to 10.
    assert [trace["y"] for trace in charts[WIDE]["traces"][:2]] == [[0, 3], [0, 8]]


def test_a_mean_has_the_steps_and_sources_that_can_be_compared(make_run):
    evals = lines("code", {0: 1.0, 10: 1.5, 20: 2.0}) + lines("web", {0: 2.0, 20: 4.0, 30: 5.0})
    evals += [held_out(10, "web", None)]
    evals += lines("late", {20: 7.0, 30: 0.0})  # was not measured at the start
    run = read_runs([make_run(evals=evals, config=config(code="old", web="old", late="old"))])[0]
    mean = forgotten(run)["old"]
    assert mean.steps.tolist() == [0, 20] and mean.since.tolist() == [0, 1.5] and mean.name == "mean of 2 sources"
    late = next(change for change in changes(run) if change.name == "late")
    assert (late.first, late.since.tolist()) == (20, [0, -7.0])


def test_a_branch_begins_at_its_step(make_run):
    event = ("forked", 3000, {"from": "runs/stable", "from_step": 3000, "parent": {"name": "stable"}})
    evals = lines("code", {3000: 1.0, 3010: 1.5}) + lines("chinese", {3000: 4.0, 3010: 3.0})
    path = make_run("branch", steps=(3010, 3020), evals=evals, events=[event], config=DOMAINS)
    assert values(charts_of(path)[WIDE])["old domains (code)"] == ([3000, 3010], [0, 0.5])
    run = read_runs([path])[0]
    assert (run.first_step, run.first_tokens) == (3000, 3000 * 4096)
    np.testing.assert_allclose(run.hours * 3600, [5.0, 10.0])  # the parent's steps took none of its time


def test_the_table_has_the_start_the_best_and_the_last(make_run):
    run = make_run(evals=[*lines("code", CODE), *lines("chinese", {0: 4.0, 10: 2.0, 20: 3.0})], config=DOMAINS)
    table = rows(forgetting_tables(read_runs([run])))
    head = table.index(["Source", "Domain", "At the start", "Best", "Last", "Change", "in percent"])
    cells = [[" ".join(cell.split()) for cell in row] for row in table[head + 1 :]]
    assert cells == [
        ["code", "old", "1.0000 step 0", "1.0000 step 0", "1.1250 step 20", "+0.1250", "+12.50%"],
        ["chinese", "new", "4.0000 step 0", "2.0000 step 10", "3.0000 step 20", "-1.0000", "-25.00%"],
    ]
    assert "most +0.2500 at step 10" in table[1][2]


def test_a_start_alone_tells_of_no_change(make_run):
    run = read_runs([make_run(evals=lines("code", {0: 1.0}), config=DOMAINS)])[0]
    assert "measured at the start alone" in forgetting_tables([run])
    assert [signed(bits) for bits in (-0.0, -0.00004, 0.00006)] == ["+0.0000", "+0.0000", "+0.0001"]


def test_averaged_parameters_are_a_line_and_a_row_of_their_own(make_run):
    evals = [*BOTH, *lines("code", {10: 1.125, 20: 1.0625}, weights="ema")]
    run = make_run(evals=evals, config=DOMAINS)
    charts = charts_of(run)
    assert values(charts["code"])["code (ema)"] == ([10, 20], [0.125, 0.0625])  # against the parameters' start
    assert [trace.get("dash") for trace in charts["code"]["traces"]] == [None, "dash"]
    assert len(charts[WIDE]["traces"]) == 2
    assert [row[0] for row in rows(forgetting_tables(read_runs([run])))[3:]] == ["code", "code (ema)", "chinese"]


def test_it_is_shown_only_where_a_run_has_domains_or_began_from_a_model(make_run, tmp_path):
    plain, labelled = make_run("plain", evals=BOTH), make_run("labelled", evals=BOTH, config=DOMAINS)
    began = make_run("began", evals=BOTH, events=INITIALISED)
    empty = make_run("empty", events=INITIALISED, config=DOMAINS)
    for runs, shown in (([plain], []), ([empty], []), ([labelled, plain], [0]), ([labelled, began], [1])):
        drawn = {trace["run"] for chart in charts_of(*runs).values() for trace in chart["traces"]}
        assert drawn == set(shown)
        page = write_report(runs, tmp_path / "page.html").read_text()
        assert (">Forgetting<" in page) == bool(shown)
    # Nothing is averaged of which it is not known whether it was to be kept or learned.
    assert list(charts_of(began)) == ["code", "chinese"]
    assert "Set data.validation.NAME.domain" in write_report([began], tmp_path / "page.html").read_text()


@pytest.mark.parametrize("text", ["data: [1]", "data: {validation: {code: 3, chinese: null}}", "[", "data: null"])
def test_a_configuration_of_another_form_has_no_domains(make_run, text):
    assert read_runs([make_run(evals=BOTH, config=text)])[0].domains == {}


def test_the_page_tells_what_was_forgotten_and_from_what_it_began(make_run, tmp_path):
    run = make_run(evals=BOTH, events=INITIALISED, config=DOMAINS)
    page = write_report([run], tmp_path / "page.html").read_text()
    tiles = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)<", page))
    assert (tiles["Forgotten"], tiles["Learned"]) == ("+0.1250", "+1.5000")
    header = page.split("<h1>")[1].split("</div>")[0]
    assert "base at step 1,200" in header and "300 rows kept, 4,000 rows new (mean), moments fresh" in header
    assert page.index(">Forgetting<") < page.index(">Loss and data<")


def test_names_of_the_user_stay_text(make_run, tmp_path):
    hostile = "<img src=x onerror=alert(1)>"
    event = (
        "initialised",
        0,
        {"from": f"/a/{hostile}", "from_step": hostile, "rows_kept": hostile, "moments": hostile},
    )
    run = make_run(evals=[*lines(hostile, CODE), *lines("code", CODE)], events=[event], config=DOMAINS)
    page = write_report([run], tmp_path / "page.html").read_text().split("<script>")[0]
    assert "<img" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page

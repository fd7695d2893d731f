"""The page on a pipeline: its numbers are those of the run, and nothing that data say can act on its reader."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from report_corpus import MENU, QUESTION, make_config, prepare, report

from data_prep.report import excerpts, histograms, sampling
from data_prep.report import page as report_page
from data_prep.report.history import find_history
from data_prep.report.masking import Masked
from data_prep.report.samples import MOST
from maxlm.errors import DataError

PLACES = (("page", "pages"), ("note", "notes"))
LOADERS = {"link", "script", "img", "iframe", "object", "embed"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    config = make_config(tmp_path_factory.mktemp("report"))
    outputs = prepare(config)
    return config, outputs, *report(config)


def samples_of(found: dict, stage: str, kind: str) -> list[dict]:
    groups = next(one["groups"] for one in found["samples"] if one["stage"] == stage)
    return [sample for group in groups if group["kind"] == kind for sample in group["samples"]]


def test_the_numbers_are_those_of_the_run(prepared):
    config, outputs, _, found = prepared
    rows = json.loads((config.work / "funnel.json").read_text())
    assert [row["stage"] for row in found["funnel"]] == [row["stage"] for row in rows]
    for shown, row in zip(found["funnel"], rows, strict=True):
        assert shown["after"].items() >= row["after"].items()
        assert {name: one["documents"] for name, one in shown["dropped"].items()} == {
            name: one["documents"] for name, one in row["dropped"].items() if one["documents"]
        }
    tokens = {path: manifest.tokens for path, manifest in outputs.items()}
    assert {one["directory"]: one["tokens"] for one in found["outputs"]} == tokens
    assert sum(one["tokens"] for one in found["sources"]) == sum(tokens.values())
    assert sum(one["tokens"] for one in found["languages"]) == sum(tokens.values())
    kept = found["funnel"][-1]["after"]
    for group in ("sources", "languages"):
        assert sum(one["kept"]["documents"] for one in found[group]) == kept["documents"]
        assert sum(one["kept"]["bytes"] for one in found[group]) == kept["bytes"]
    assert found["state"]["done"] and found["sample"]["documents"] == found["sample"]["of"]["documents"] == 66


def test_the_page_loads_nothing_and_is_made_again_alike(prepared, tmp_path):
    config, _, page, found = prepared
    loading = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: loading.extend(
        (tag, name) for name, _ in [(None, None), *attributes] if tag in LOADERS or name in ("src", "href", "srcset")
    )
    parser.feed(page)
    assert not loading and not re.search(r"@import|url\(", page[: page.index("</style>")])
    assert "default-src 'none'" in page
    before = {path: path.stat().st_mtime_ns for path in config.work.parent.parent.rglob("*")}
    assert report(config, tmp_path / "other.html") == (page, found)
    assert {path: path.stat().st_mtime_ns for path in config.work.parent.parent.rglob("*")} == before


def test_what_data_say_cannot_act(prepared):
    _, _, page, found = prepared
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;\\x202egnp.exe\\x00\\x1b[31m &amp;" in page
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    ids = [sample["id"] for stage in found["samples"] for group in stage["groups"] for sample in group["samples"]]
    assert 'pages/"><img src=x onerror=alert(1)>' in ids


def test_a_rule_is_shown_with_the_value_that_failed_and_its_limit(prepared):
    _, _, page, found = prepared
    (rule,) = found["rules"][0]["rules"]
    assert (rule["rule"], rule["limit"], rule["side"]) == ("gopher: too few words", 20, "least")
    row = next(row for row in found["funnel"] if row["stage"] == "rules")
    assert rule["dropped"] == rule["failing"] == row["dropped"]["gopher: too few words"]["documents"] == 3
    assert sum(rule["counts"][: rule["limit_bar"]]) == 3 and not sum(rule["kept"][: rule["limit_bar"]])
    samples = {sample["id"]: sample["values"] for sample in samples_of(found, "rules", "dropped")}
    assert samples["pages/short"] == [{"name": "gopher.words", "value": 5.0, "least": 20}]
    assert "gopher.words is 5, limit: at least 20" in page


def test_copies_are_shown_beside_the_one_that_stayed(prepared):
    _, _, _, found = prepared
    (exact,), (near,) = (samples_of(found, stage, "dropped") for stage in ("exact", "fuzzy"))
    # The smaller id stays of equal texts, and the longer text of similar ones.
    assert (exact["id"], exact["copy"]["id"]) == ("pages/page3", "pages/copy")
    assert {near["id"], near["copy"]["id"]} == {"pages/page4", "pages/near"}
    assert exact["text"] != near["text"] and exact["copy"]["text"][0][1] == exact["text"][0][1][:300]
    sizes = {one["stage"]: one["sizes"] for one in found["clusters"]}
    assert sizes == {"exact": [[2, 1]], "fuzzy": [[2, 1]]}


def test_edits_are_shown_as_what_was_cut(prepared):
    _, _, page, found = prepared
    for sample in samples_of(found, "lines", "changed"):
        assert MENU in [text.strip() for kind, text in sample["text"] if kind == "-"]
    (cut,) = samples_of(found, "decontaminate", "changed")
    assert cut["id"] == "pages/asked" and QUESTION in "".join(text for kind, text in cut["text"] if kind == "-")
    assert f"<del>{QUESTION}" in page.replace("\n", "")
    assert found["contamination"]["items"][0]["documents"] == 1


def test_what_a_document_was_dropped_for_is_marked(tmp_path):
    benchmark = {"name": "herons", "path": str(tmp_path / "benchmark.txt")}
    config = make_config(tmp_path, decontaminate={"files": [benchmark], "action": "drop"})
    prepare(config, until="decontaminate")
    page, found = report(config)
    (sample,) = samples_of(found, "decontaminate", "dropped")
    assert [text for kind, text in sample["text"] if kind == "*"] == [QUESTION] and f"<mark>{QUESTION}</mark>" in page


def test_a_pipeline_that_is_half_done_has_a_page(tmp_path):
    config = make_config(tmp_path)
    with pytest.raises(DataError, match="nothing of the pipeline is there"):
        report(config)
    assert not (tmp_path / "out").exists()
    prepare(config, until="rules")
    page, found = report(config)
    assert found["state"]["waits_for"] == "fuzzy" and "half done: a run would go on with the stage fuzzy" in page
    assert found["outputs"] == [] and found["funnel"][-1]["stage"] == "rules"
    assert samples_of(found, "rules", "dropped") and samples_of(found, "kept in the end", "kept")


def test_a_corpus_that_is_large_is_sampled(prepared, tmp_path, monkeypatch):
    config, _, _, whole = prepared
    monkeypatch.setattr(sampling, "MOST_ROWS", 10)
    page, found = report(config, tmp_path / "page.html")
    # Every source has a shard that is read, of a shard some rows.
    assert found["lengths"][0]["documents"] < 66 and found["funnel"] == whole["funnel"]
    assert found["rules"][0]["documents"] < 66


def test_comparisons_of_tokenizers_and_synthetic_sources_are_shown_where_they_are(tmp_path):
    config = make_config(tmp_path)
    prepare(config, until="ingest")
    row = {"tokenizer": "mine <b>", "source": "pages", "language": "en", "documents": 9, "bytes": 90, "tokens": 30}
    row |= {"words": 15, "bytes_per_token": 3.0, "fertility": 2.0, "vocabulary_used": 0.25}
    (config.work / "tokenizers.json").write_text(json.dumps([row]))
    (tmp_path / "synthesis.json").write_text(json.dumps({"kept": 1234, "reasons": {"too short": 5}}))
    page, found = report(config)
    assert found["tokenizers"] == [row] and "mine &lt;b&gt;" in page and "25.0%" in page
    assert "1,234" in page and "reasons: too short" in page and len(found["synthesis"]) == 2


@pytest.mark.parametrize(("side", "passing"), [("least", [0.5, 0.7]), ("most", [0.1, 0.5])])
def test_a_number_that_is_the_limit_is_on_the_side_that_passes(side, passing):
    values = np.array([0.1, 0.5, 0.7] * 5)
    found = histograms.histogram("x", values, np.isin(values, passing), (side, 0.5), "share")
    failing = found["counts"][: found["limit_bar"]] if side == "least" else found["counts"][found["limit_bar"] :]
    assert sum(failing) == 5 and sum(found["counts"]) == 15
    assert sum(found["kept"]) == 10 == sum(found["counts"]) - sum(failing)


@pytest.mark.parametrize(
    ("values", "scale"),
    [([0, 1, 2, 2], "whole"), ([0, 1, 10, 1e6], "log"), ([-0.5, 0.25, 0.75], "linear"), ([3, 3], "whole")],
)
def test_every_value_is_counted_on_an_axis_that_suits(values, scale):
    values = np.array([*values, np.nan], np.float64)
    found = histograms.histogram("x", values, values > 1)
    assert (found["scale"], found["documents"]) == (scale, len(values) - 1)
    assert sum(found["counts"]) == len(values) - 1 and sum(found["kept"]) == np.sum(values > 1)
    assert histograms.histogram("x", values[-1:], values[-1:] > 1) is None


def test_excerpts_are_short_and_say_what_is_left_out():
    assert excerpts.head("日本語".encode(), 2) == [["=", "日本"], ["…", "3 more bytes"]]
    text = b"a" * 1000 + b"CUT" + b"b" * 1000 + b"GONE" + b"c" * 1000
    found = excerpts.changes(text, [(1000, 1003, ""), (2003, 2007, "new")])
    assert [one for one in found if one[0] in "-+"] == [["-", "CUT"], ["-", "GONE"], ["+", "new"]]
    assert sum(len(one) for _, one in found) < 600
    many = excerpts.changes(b"x\n" * 5000, [(2 * line, 2 * line + 1, "") for line in range(5000)])
    assert sum(len(one) for _, one in many) < 1000 and "more changes" in many[-1][1]
    huge = excerpts.changes(b"\0" * 10**6, [(10, 10**6 - 10, "\u202e" * 10**5)])
    assert sum(len(one) for _, one in huge) < 2000


def test_edits_of_a_text_are_found_again_in_the_masked_one():
    text = b"write to a@b.example or call 12345 today"
    masked = Masked.of(text, [(9, 20, "<mail>"), (29, 34, "<phone>")])
    assert masked.text == b"write to <mail> or call <phone> today"
    assert masked.moved([(0, 9, ""), (12, 23, ""), (30, 40, "x")]) == [(0, 9, ""), (9, 18, ""), (24, 37, "x")]


def test_the_command_prints_where_the_page_is_and_a_run_names_the_command(prepared, tmp_path, command):
    config = prepared[0]
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    ran = command("run", file, "workers=1")
    assert ran.stdout.splitlines()[-1] == f"report: maxlm-prep report {file} workers=1"
    done = command("report", file, "--output", tmp_path / "pages" / "mine.html")
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "pages" / "mine.html")
    assert (tmp_path / "pages" / "mine.json").is_file()
    refused = command("report", file, "--output", file / "mine.html")
    assert refused.returncode == 1 and "cannot be written" in refused.stderr
    absent = command("report", file, f"output={tmp_path / 'nowhere'}")
    assert absent.returncode == 3 and "nothing of the pipeline is there" in absent.stderr


def test_a_mixture_has_its_table_and_its_documents_are_told_from_those_that_it_leaves(tmp_path):
    mix = {"weights": {"pages": 1, "notes": 3}, "max_epochs": {"notes": 2}}
    config = make_config(tmp_path, mix=mix)
    outputs = prepare(config)
    page, found = report(config)
    taken = {row["source"]: row["taken"] for row in found["mix"]}
    assert taken == {name: outputs[str(tmp_path / "out" / name)].tokens for name in ("pages", "notes")}
    assert "<h2>Mixture</h2>" in page and found["funnel"][-1]["stage"] == "mix"
    histories = [find_history(config, f"{name}{number}", source)[0] for name, source in PLACES for number in range(20)]
    copies = [one["output"]["copies"] for one in histories if one["output"]]
    assert set(copies) == {1, 2}
    left = [one for one in histories if one["kept"] and not one["output"]]
    assert left and {one["why_not"] for one in left} == {"it gave no tokens, or the mixture does not take it"}


def test_scores_have_their_limits_on_the_page(tmp_path):
    scores = tmp_path / "scores.jsonl"
    rows = ({"id": f"page{number}", "score": number / 40} for number in range(40))
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    quality = {"join": {"grade": {"path": str(scores), "score": "score", "source": "pages"}}}
    config = make_config(tmp_path, quality=quality | {"select": [{"score": "grade", "min": 0.25}]})
    prepare(config, until="quality")
    page, found = report(config)
    grade = next(one for one in found["columns"] if one["name"] == "grade")
    dropped = next(row for row in found["funnel"] if row["stage"] == "quality")["dropped"]
    assert sum(grade["counts"][: grade["limit_bar"]]) == dropped["grade below 0.25"]["documents"] > 5
    assert not sum(grade["kept"][: grade["limit_bar"]]) and "limit: at least 0.25" in page
    for sample in samples_of(found, "quality", "dropped"):
        (value,) = sample["values"]
        assert value["name"] == "grade" and value["value"] < value["least"] == 0.25


def test_a_page_is_small_whatever_the_texts_are(prepared):
    found = prepared[3]
    worst = excerpts.head(("&\u202e<日" * 10**5).encode())
    assert sum(len(text) for _, text in worst) < 650
    sample = {
        "id": "&" * 200,
        "url": "<" * 200,
        "source": "a",
        "columns": {},
        "note": None,
        "values": [],
        "text": worst,
    }
    sample["copy"] = {"id": "&" * 200, "text": excerpts.head(b"&" * 10**6, 300)}
    groups = [{"kind": "dropped", "reason": "x", "samples": [sample] * MOST}]
    assert len(report_page.page(found | {"samples": [{"stage": "rules", "groups": groups}]})) < 2_000_000

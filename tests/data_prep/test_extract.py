"""Extraction in a process of its own: a page that hangs, crashes or fails costs itself and nothing else."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from misbehaving import MEMORY, make_broken, make_dying, make_misbehaving
from rich.console import Console
from web_archives import html, ingest, members, warc_record

from data_prep.config import ExtractConfig, Pipeline
from data_prep.ingest import extract as extraction
from data_prep.ingest.child import Child
from data_prep.ingest.extract import extracted, settings
from data_prep.ingest.pages import Page
from data_prep.ingest.records import Rejected
from data_prep.pipeline import run
from maxlm.config import validate
from maxlm.errors import ConfigError, MaxlmError


@pytest.fixture
def child(tmp_path):
    # A second is enough for a page that does nothing, on a loaded machine too, as each is tried twice.
    child = Child(partial(make_misbehaving, tmp_path), 1.0, MEMORY)
    yield child
    child.close()


def outcome(child, pages):
    counts = {"pages": 0, "bytes": 0, "dropped": {}}
    found = [Page(str(i), page.encode(), "x") if isinstance(page, str) else page for i, page in enumerate(pages)]
    return [one if isinstance(one, Rejected) else one.text.decode() for one in extracted(found, child, counts)], counts


@pytest.mark.parametrize(
    "bad, reason",
    [
        ("hang x", "extraction timed out"),
        ("segfault x", "extraction crashed"),
        ("exit x", "extraction crashed"),
        ("memory x", "extraction crashed"),
        ("raise x", "extraction failed"),
        ("deep x", "extraction failed"),
        ("text  \n", "no text extracted"),
    ],
)
def test_a_bad_page_costs_itself_alone(child, bad, reason):
    texts, counts = outcome(child, ["text a", bad, "text b", bad, "text c"])
    assert texts == ["a", "b", "c"]
    assert counts == {"pages": 5, "bytes": 18 + 2 * len(bad), "dropped": {reason: [2, 2 * len(bad)]}}


@pytest.mark.parametrize("way", ["hang", "segfault", "memory"])
def test_a_page_that_ends_the_process_once_is_kept(child, way):
    texts, counts = outcome(child, ["text a", f"once-{way} slow", "text b"])
    assert texts == ["a", "slow", "b"] and counts["dropped"] == {}


def test_memory_that_pages_leave_behind_costs_none_of_them(child):
    texts, counts = outcome(child, [f"hoard {number}" for number in range(8)])
    assert texts == [str(number) for number in range(8)] and counts["dropped"] == {}


def test_texts_keep_the_order_of_pages_and_of_what_is_none(child):
    pages = [Rejected(f"r{i}") if i % 3 == 0 else f"text {i} " + "x" * (i % 7) * 9000 for i in range(700)]
    texts, counts = outcome(child, pages)
    assert texts == [page if isinstance(page, Rejected) else page.removeprefix("text ") for page in pages]
    assert counts["pages"] == 466 and counts["bytes"] == sum(len(page) for page in pages if isinstance(page, str))


def test_large_pages_and_texts_pass_both_pipes(child):
    """Pipes hold 64 kB to 1 MB: neither side may wait for the other to read."""
    pages = [f"text {letter * 3_000_000}" for letter in "abcd"]
    assert outcome(child, pages)[0] == [page.removeprefix("text ") for page in pages]


def test_an_abandoned_extraction_leaves_nothing_to_the_next(child):
    pages = [Page(str(i), f"text {i}".encode(), "x") for i in range(1000)]
    one = extracted(pages, child, {"pages": 0, "bytes": 0, "dropped": {}})
    assert next(one).text == b"0"
    one.close()
    assert outcome(child, ["text new"])[0] == ["new"]


def test_the_process_that_waited_and_was_killed_is_started_again(child):
    assert outcome(child, ["text a"])[0] == ["a"]
    os.kill(child.process.pid, signal.SIGKILL)
    assert outcome(child, ["text b", "text c"])[0] == ["b", "c"]


def test_an_extractor_that_cannot_work_stops_the_run():
    with pytest.raises(ConfigError, match="extract: no such selector"):
        Child(partial(make_broken, ValueError("no such\nselector")), 1.0, MEMORY).send([Page("a", b"x", "x")])
    with pytest.raises(MaxlmError, match=r"before it is ready \(exit code 7\)"):
        Child(make_dying, 1.0, MEMORY).send([Page("a", b"x", "x")])


WORKER = """
import sys
from functools import partial
from pathlib import Path
from data_prep.ingest.child import Child
from data_prep.ingest.pages import Page
from misbehaving import make_misbehaving

if __name__ == "__main__":
    child = Child(partial(make_misbehaving, Path(sys.argv[1])), 600.0, 2**28)
    child.send([Page("a", sys.argv[2].encode(), "x")])
    print(child.process.pid, flush=True)
    child.receive()
    sys.stdin.read()
"""


@pytest.mark.parametrize("page", ["hang x", "text x"])
def test_no_process_outlives_a_killed_worker(tmp_path, page):
    """Whether it works on a page, in C, or waits for one."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(tmp_path), page]
    worker = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child = int(worker.stdout.readline())
    time.sleep(0.3)
    assert _alive(child)
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + 20
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(child)


def _alive(pid):
    found = subprocess.run(["ps", "-p", str(pid), "-o", "stat="], capture_output=True, text=True).stdout
    return found.strip() not in ("", "Z", "Z+")


PAGE = b"""<html><head><title>t</title></head><body><nav><a href="/menu">Menu</a></nav><main><h1>Head</h1>
<p>Some longer words of a paragraph, which every extractor keeps, with a <a href="http://x.org/">link</a>.</p>
<ul><li>one item</li><li>two items</li></ul><img alt="a picture"><noscript>no script</noscript>
<form><input type="text" value="typed"></form><aside class="gone">an aside</aside>
<p>Another paragraph of text that is long enough to be taken for the content of the page by all of them.</p>
</main></body></html>"""


def one_page(tmp_path, **options):
    (tmp_path / "a.html").write_bytes(PAGE)
    (row,), _ = ingest(tmp_path / "work", tmp_path / "a.html", extract=options, kind="html")
    return row["text"]


@pytest.mark.parametrize(
    "option, with_it, without",
    [
        ({"main_content": False}, "Menu", ""),
        ({"preserve_formatting": False}, "Head Some longer", "Head\n"),
        ({"list_bullets": False}, "", "\u2022 one item"),
        ({"alt_texts": True}, "a picture", ""),
        ({"links": True}, "http://x.org/", ""),
        ({"form_fields": True}, "typed", ""),
        ({"noscript": True}, "no script", ""),
        ({"skip_elements": [".gone"]}, "", "an aside"),
    ],
)
def test_options_of_resiliparse_do_what_they_say(tmp_path, option, with_it, without):
    base = {"main_content": "main_content" in option or "links" in option}
    plain, other = one_page(tmp_path, resiliparse=base), one_page(tmp_path, resiliparse=base | option)
    assert with_it in other and without in plain and plain != other
    assert not with_it or with_it not in plain
    assert not without or without not in other


def test_trafilatura_extracts_too(tmp_path):
    pytest.importorskip("trafilatura", exc_type=ImportError)
    text = one_page(tmp_path, extractor="trafilatura", trafilatura={"favour": "precision"})
    assert "Some longer words" in text and "Menu" not in text
    assert "http://x.org/" in one_page(tmp_path, extractor="trafilatura", trafilatura={"links": True})


def test_a_selector_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="extract: "):
        one_page(tmp_path, resiliparse={"skip_elements": ["p:::("]})


def test_an_extractor_that_is_not_installed_is_named(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extraction.extractors, "version", missing)
    with pytest.raises(ConfigError, match=r"trafilatura is not installed: pip install 'maxlm\[trafilatura\]'"):
        settings(ExtractConfig(extractor="trafilatura"))


@pytest.fixture
def raw(tmp_path):
    """Three archives of 60 pages each, and a text."""
    (tmp_path / "raw").mkdir()
    for name in "abc":
        records = [warc_record(html(f"{name} page {i} " + "word " * (i % 50)), i) for i in range(60)]
        records += [warc_record(b"", kind="request"), warc_record(html(" "), 99)]
        (tmp_path / "raw" / f"{name}.warc.gz").write_bytes(b"".join(members(records)))
    (tmp_path / "plain.txt").write_text("a text without HTML")
    return tmp_path


def make_pipeline(tmp_path, **sections):
    sources = {
        "web": {"kind": "warc", "path": str(tmp_path / "raw")},
        "plain": {"kind": "tree", "path": str(tmp_path / "plain.txt")},
    }
    values = {
        "name": "test",
        "output": str(tmp_path / "out"),
        "workers": 1,
        "ingest": {"sources": sources, "shard_bytes": 2000},
        "tokenizer": {"algorithm": "byte_bpe", "vocab_size": 300},
    }
    return validate(values | sections, Pipeline, "test")


def ingest_results(config):
    with open(os.devnull, "w") as sink:
        console = Console(record=True, width=200, file=sink)
        run(config, console, until="ingest")
    files = {path.relative_to(config.work): path.read_bytes() for path in sorted(config.work.rglob("*.parquet"))}
    return console.export_text(), files


def test_the_funnel_tells_reading_from_extraction(raw):
    printed, _ = ingest_results(make_pipeline(raw))
    rows = {line.strip().split("  ")[0]: line.split() for line in re.sub("[│┃]", "", printed).splitlines()}
    assert rows["ingest"][1:3] == ["184", "98.4%"] and rows["WARC request"][2] == "-3"
    assert rows["extract"][1:3] == ["180", "98.4%"] and rows["no text extracted"][3] == "-3"


def test_output_does_not_depend_on_the_number_of_workers(raw):
    _, alone = ingest_results(make_pipeline(raw))
    _, shared = ingest_results(make_pipeline(raw, workers=2, output=str(raw / "other")))
    assert alone == shared and len(alone) > 3


def test_options_of_extraction_redo_sources_with_html_alone(raw):
    _, before = ingest_results(make_pipeline(raw))
    _, after = ingest_results(make_pipeline(raw, extract={"resiliparse": {"main_content": False}}))
    _, same = ingest_results(make_pipeline(raw, extract={"trafilatura": {"fast": True}}))
    # What an earlier configuration left stays until a whole run ends well.
    assert before.items() <= after.items() and len(after) == 2 * len(before) - 1
    assert same == after


def test_a_killed_run_leaves_no_process_and_goes_on_to_the_same_bytes(raw):
    config = make_pipeline(raw, workers=2)
    path = raw / "pipeline.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "data_prep", "ingest", str(path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list(config.work.glob("ingest/*/*.parquet*")):
        time.sleep(0.002)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while (left := _session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    _, rerun = ingest_results(config)
    _, clean = ingest_results(make_pipeline(raw, output=str(raw / "clean")))
    assert rerun == clean


def _session(pid):
    found = subprocess.run(["ps", "-s", str(pid), "-o", "pid=,stat="], capture_output=True, text=True).stdout
    return [line for line in found.splitlines() if "Z" not in line]

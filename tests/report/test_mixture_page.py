"""The mixture on the report page, read from the newest checkpoint."""

import json
import re
import shutil

import pytest
from shard_files import documents_of_random_lengths, write_directory
from tiny import run_config

from maxlm.data import order
from maxlm.data.schedule import Layout, Stage
from maxlm.data.sources import open_present
from maxlm.report.html import write_report
from maxlm.report.mixture_page import read_mixture
from maxlm.report.page import PALETTE

STAGES = [{"tokens": 128 * 30, "weights": {"web": 3, "code": 1}}, {"tokens": 128 * 10, "weights": {"code": 1}}]


@pytest.fixture
def standing(make_run, tmp_path):
    """A run directory with a checkpoint at step 20 of 40."""
    run_dir = make_run()
    for seed, name in enumerate(("web", "code")):
        write_directory(tmp_path / name, documents_of_random_lengths(seed, 100))
    sources = {name: {"path": str(tmp_path / name)} for name in ("web", "code")}
    config = run_config(data={"sources": sources, "mixture": STAGES})
    opened, _ = open_present(config.data, config.seed)
    laid = [Stage(stage["tokens"], stage["weights"], 8, 16) for stage in STAGES]
    loader = {"order": order.VERSION, "examples": 160, "schedule": Layout(laid, opened).begin().to_json()}
    manifests = {name: source.shards.manifest.hash for name, source in opened.items()}
    run = {"version": 1, "step": 20, "tokens": 2560, "loader": loader, "config": config.model_dump(mode="json")}
    path = run_dir / "checkpoints" / "20" / "run" / "metadata"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(run | {"manifests": manifests}))
    return run_dir


def section(run_dir) -> str:
    page = write_report([run_dir], run_dir / "report.html").read_text()
    return page.partition("<h2>Mixture</h2>")[2].partition("<h2>")[0]


def test_areas_fill_the_picture_and_have_the_colours_of_the_charts(standing):
    svg = section(standing).partition("<svg")[2].partition("</svg>")[0]
    look = r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)" fill="(.*?)"><title>(.*?)</title>'
    assert [(*map(float, found[:4]), *found[4:]) for found in re.findall(look, svg)] == [
        (0, 0, 750, 120, PALETTE[0], "web 75.00%"),  # the metrics name the sources as web, code
        (0, 120, 750, 40, PALETTE[1], "code 25.00%"),
        (750, 0, 250, 160, PALETTE[1], "code 100.00%"),
    ]
    assert svg.count('class="stage"') == 2 and "M750.00" in svg
    assert re.search(r'class="now"><title>the newest checkpoint</title><path d="M500.00', svg)


def test_the_table_counts_tokens_and_epochs(standing):
    text = section(standing)
    found = read_mixture(standing).overview
    assert "40 steps, 5.1K tokens" in text and "1–30" in text and "31–40" in text
    first, last = found.parts
    for part in (first, last):
        assert f"code {part.tokens_by_source['code']:,} ({part.epochs['code']:.3g})" in text


def test_data_that_are_gone_or_new_have_no_epochs(standing, tmp_path):
    shutil.rmtree(tmp_path / "web")
    found = read_mixture(standing).overview
    assert found.unknown == ("web",) and found.parts[-1].epochs.keys() == {"code"}
    shutil.rmtree(tmp_path / "code")
    write_directory(tmp_path / "code", documents_of_random_lengths(7, 100))
    found = read_mixture(standing).overview
    assert set(found.unknown) == {"web", "code"} and "not here: " in section(standing)


@pytest.mark.parametrize("damage", ["{", '{"version": 1, "loader": {"order": 1}}', '{"version": 9}'])
def test_a_page_is_written_without_it_where_the_checkpoint_cannot_be_read(standing, damage):
    (standing / "checkpoints" / "20" / "run" / "metadata").write_text(damage)
    assert section(standing) == ""
    shutil.rmtree(standing / "checkpoints")
    assert section(standing) == ""

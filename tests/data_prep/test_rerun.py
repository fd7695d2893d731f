"""A rerun does what is missing and nothing else, whatever stopped the run before."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from data_prep.manifest import Folder, make_key, writing
from maxlm.errors import SaveError

STAGES = ("ingest", "exact", "tokenizer", "tokenize")


@pytest.fixture
def sections(tree):
    source = {"kind": "tree", "path": str(tree)}
    return {
        "ingest": {"sources": {"web": source}, "shard_bytes": 12000},
        "dedup": {"exact": True},
        "validation": {"fraction": 0.2},
        "shards": {"shard_tokens": 4000},
    }


def times(root):
    return {str(path): path.stat().st_mtime_ns for path in Path(root).rglob("*") if path.name != "lock"}


def results(root):
    """Keys of the finished results by stage."""
    work = Path(root) / ".work" / "test"
    return {stage: {path.name for path in (work / stage).iterdir()} for stage in STAGES}


def test_a_second_run_writes_nothing(tmp_path, sections, prepare):
    first = prepare(**sections)
    before = times(tmp_path / "out")
    second = prepare(**sections)
    assert times(tmp_path / "out") == before and second.manifests == first.manifests
    assert "output: 2 of 2 directories up to date" in second.printed


def test_a_changed_tokenizer_redoes_what_follows_it(tmp_path, sections, prepare):
    prepare(**sections)
    before = results(tmp_path / "out")
    prepare(**sections, tokenizer={"algorithm": "byte_bpe", "vocab_size": 310})
    after = results(tmp_path / "out")
    assert all(after[stage] == before[stage] for stage in ("ingest", "exact"))
    assert all(not after[stage] & before[stage] for stage in ("tokenizer", "tokenize"))


def test_a_changed_seed_redoes_the_shuffle_and_keeps_the_tokenizer(tmp_path, sections, prepare):
    prepare(**sections)
    before = results(tmp_path / "out")
    prepare(**sections, seed=3)
    after = results(tmp_path / "out")
    assert all(after[stage] == before[stage] for stage in ("ingest", "exact", "tokenizer"))


def test_an_added_file_redoes_one_shard_per_stage(tmp_path, tree, sections, prepare):
    """The tokenizer is given, as a trained one depends on all text."""
    prepare(**sections, output=str(tmp_path / "first"))
    given = sections | {"tokenizer": {"path": str(tmp_path / "first" / "web")}}
    prepare(**given)
    before = results(tmp_path / "out")
    (tree / "added.txt").write_text("a new document")
    prepare(**given)
    after = results(tmp_path / "out")
    assert len(before["ingest"]) > 3 and len(after["ingest"] - before["ingest"]) == 1
    # A group of files may fill more than one shard.
    assert 1 <= len(after["tokenize"] - before["tokenize"]) <= 2 < len(before["tokenize"])


def test_a_damaged_output_or_intermediate_file_is_made_again(tmp_path, sections, prepare, contents):
    prepare(**sections)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "web" / "tokens-00000.bin").unlink()
    lost = next((tmp_path / "out" / ".work" / "test" / "ingest").rglob("*.parquet"))
    data = lost.read_bytes()
    lost.write_bytes(data[:-1])
    prepare(**sections)
    assert contents(tmp_path / "out") == before and lost.read_bytes() == data


def test_a_changed_file_is_read_again(tree, sections, prepare):
    prepare(**sections)
    changed = next(tree.rglob("*.txt"))
    changed.write_text("other words")
    prepared = prepare(**sections)
    texts = {row["id"]: row["text"] for name in prepared.manifests for row in prepared.documents(name)}
    assert texts[f"web/{changed.relative_to(tree)}"] == "other words"


def test_a_run_without_its_work_directory_gives_the_same_bytes(tmp_path, sections, prepare, contents):
    prepare(**sections)
    before = contents(tmp_path / "out")
    prepare(**sections, work_dir=str(tmp_path / "elsewhere"))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("moment", ["ingest/*/record.json", "tokenize/*/record.json", "shuffle/*/record.json"])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, sections, pipeline, prepare, contents, command, moment):
    """SIGKILL when a stage has its first results; no worker is left, and the rerun keeps them."""
    prepare(**sections, output=str(tmp_path / "clean"))
    config = pipeline(**sections, output=str(tmp_path / "killed"), workers=2)
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep", "run", str(path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    work = tmp_path / "killed" / ".work" / "test"
    while process.poll() is None and not list(work.glob(moment)):
        time.sleep(0.002)
    process.kill()
    process.wait()
    for _ in range(400):
        if not _alive(process.pid):
            break
        time.sleep(0.05)
    assert not _alive(process.pid), "workers end with the process that was killed"
    finished = {path: path.stat().st_mtime_ns for path in work.glob(moment)}
    rerun = command("run", path)
    assert rerun.returncode == 0, rerun.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "clean")
    assert not list((tmp_path / "killed").rglob("*.partial*"))
    kept = {path: path.stat().st_mtime_ns for path in work.glob(moment)}
    assert moment.startswith("shuffle") or all(kept[path] == stamp for path, stamp in finished.items())


def _alive(session):
    """Whether a process of a session is left."""
    found = subprocess.run(["ps", "-s", str(session), "-o", "pid=,stat="], capture_output=True, text=True).stdout
    return any("Z" not in line for line in found.splitlines())


def test_an_interrupted_write_leaves_the_former_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("former")
    with pytest.raises(KeyboardInterrupt), writing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "former" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_result_without_all_its_files_does_not_exist(tmp_path):
    folder = Folder(tmp_path / "stage")
    key = make_key("stage", 1, "input")
    for name in ("a", "b"):
        with writing(folder.file(key, name)) as temporary:
            temporary.write_text(name)
    folder.commit(key, ["a", "b"], {"count": 2})
    assert folder.find(key).values == {"count": 2}
    folder.file(key, "b").unlink()
    assert folder.find(key) is None


def test_a_key_depends_on_stage_version_and_inputs():
    keys = {make_key("a", 1, "x"), make_key("b", 1, "x"), make_key("a", 2, "x"), make_key("a", 1, "y")}
    assert len(keys) == 4 and make_key("a", 1, {"p": 1, "q": 2}) == make_key("a", 1, {"q": 2, "p": 1})


def test_interrupt_exits_130_and_a_rerun_goes_on(tmp_path, sections, pipeline, prepare, contents, command):
    prepare(**sections, output=str(tmp_path / "clean"))
    config = pipeline(**sections, output=str(tmp_path / "stopped"), workers=2)
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep", "run", str(path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not list((tmp_path / "stopped").glob(".work/test/ingest/*/record.json")):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.strip().splitlines() == [
        "interrupted; the same command goes on where it stopped"
    ]
    assert command("run", path).returncode == 0
    assert contents(tmp_path / "stopped") == contents(tmp_path / "clean")


def test_a_place_that_cannot_be_written_is_named(tmp_path, sections, prepare):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(SaveError, match="file/.*cannot be written"):
        prepare(**sections, output=str(tmp_path / "file"))

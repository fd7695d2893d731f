"""Runs that are killed, stopped, moved or edited go on exactly where they stood."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from maxlm import saved
from maxlm.config import Config, to_yaml
from maxlm.errors import ConfigError, DataError, DivergedError, SaveError
from maxlm.report.metrics import read_lines
from maxlm.train import loop
from maxlm.train.lock import LOCK
from maxlm.train.resume import check_indexes, recorded_changes, shown
from maxlm.train.state import check_host_memory

TIMINGS = ("step_seconds", "data_wait_seconds", "tokens_per_second", "seconds", "goodput", "hbm_gib", "mfu")


def train(config: Config):
    """One device compiles in a third of the time of eight."""
    return loop.train(config, jax.devices()[:1])


def arrays(state) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def saved_arrays(config: Config, step: int) -> dict[str, np.ndarray]:
    """Parameters and moments of a checkpoint, as they are on disk."""
    import orbax.checkpoint as ocp

    directory = config.run_dir.resolve() / "checkpoints" / str(step)
    found = {}
    for item in ("params", "optimizer", "counters"):
        tree = ocp.PyTreeCheckpointer().restore(directory / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def assert_same_arrays(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys() and len(left) > 20
    for name in left:
        assert left[name].tobytes() == right[name].tobytes(), name


def lines_without_timings(config: Config, name: str) -> list[dict]:
    lines = read_lines(config.run_dir / name)
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


ONE_DEVICE = {"XLA_FLAGS": ""}


def start(config: Config, tmp_path: Path) -> subprocess.Popen:
    """`maxlm train` in a process of its own, on one device."""
    path = tmp_path / f"{config.name}.yaml"
    path.write_text(to_yaml(config))
    command = [sys.executable, "-m", "maxlm.cli", "train", str(path)]
    variables = os.environ | ONE_DEVICE
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(make_config, tmp_path):
    length = {"data.mixture": [{"tokens": 256 * 60, "weights": {"model": 3, "prep": 1}}]}
    whole = make_config(length, name="whole")
    finish(start(whole, tmp_path))

    killed, moments = make_config(length, name="killed"), random.Random(7)
    directory = killed.run_dir / "checkpoints"
    kills, saves_hit = 0, 0
    while kills < 5:
        process = start(killed, tmp_path)
        before = temporary(directory)
        if kills % 2:  # as soon as the directory of a save in progress appears
            wait_for(process, lambda seen=before: temporary(directory) - seen)
            saves_hit += process.poll() is None
        else:  # some steps after the first new line of the metrics
            lines = len(read_lines(killed.run_dir / "metrics.jsonl"))
            wait_for(process, lambda seen=lines: len(read_lines(killed.run_dir / "metrics.jsonl")) > seen)
            time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        if process.returncode == 0:  # it was over before the signal
            break
    finish(start(killed, tmp_path))

    assert kills >= 3 and saves_hit >= 1
    assert_same_arrays(saved_arrays(whole, 60), saved_arrays(killed, 60))
    assert lines_without_timings(whole, "metrics.jsonl") == lines_without_timings(killed, "metrics.jsonl")
    assert lines_without_timings(whole, "eval.jsonl") == lines_without_timings(killed, "eval.jsonl")
    assert [line["step"] for line in read_lines(killed.run_dir / "metrics.jsonl")] == list(range(3, 61, 3))


def temporary(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("*") if not path.name.isdecimal()}


def wait_for(process: subprocess.Popen, condition) -> None:
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline, "the run came to nothing"
        time.sleep(0.002)


@pytest.mark.slow
def test_sigterm_saves_and_exits_75_and_the_run_goes_on_with_the_same_bits(make_config, tmp_path):
    length = {
        "data.mixture": [{"tokens": 256 * 40, "weights": {"model": 3, "prep": 1}}],
        "checkpoint.every_steps": None,
    }
    whole, stopped = make_config(length, name="whole"), make_config(length, name="stopped")
    finish(start(whole, tmp_path))
    process = start(stopped, tmp_path)
    wait_for(process, lambda: read_lines(stopped.run_dir / "metrics.jsonl"))
    process.send_signal(signal.SIGTERM)
    output = finish(process, code=75)
    assert "saved" in output and "Traceback" not in output
    assert 3 <= int(saved.latest(stopped.run_dir).name) < 40
    finish(start(stopped, tmp_path))
    assert_same_arrays(saved_arrays(whole, 40), saved_arrays(stopped, 40))
    assert lines_without_timings(whole, "metrics.jsonl") == lines_without_timings(stopped, "metrics.jsonl")


def test_a_run_goes_on_on_another_mesh_with_the_same_data_and_values(make_config):
    whole, moved = make_config(name="whole"), make_config(name="moved")
    end = train(whole)
    loop.train(make_config({"mesh.tensor": 2, "train.total_tokens": 256 * 8}, name="moved"))  # 4 x 2 devices
    final = train(moved)
    before, after = lines_without_timings(whole, "metrics.jsonl"), lines_without_timings(moved, "metrics.jsonl")
    assert [line["step"] for line in after] == [3, 6, 8, 9, 12, 15, 18, 20]
    at = {line["step"]: line for line in after}
    # The shorter run logs its last step and decays its rate from step 4 on; the data is the same throughout.
    assert all(line["tokens"] == at[line["step"]]["tokens"] for line in before)
    assert end.sums.targets.tolist() == final.sums.targets.tolist()
    assert at[9]["tokens_by_source"] | {} and at[12]["tokens_by_source"] == before[3]["tokens_by_source"]
    np.testing.assert_allclose(at[3]["loss"], before[0]["loss"], rtol=1e-5)


def test_a_finished_run_says_so_and_is_not_touched(make_config, capfd):
    config = make_config({"train.total_tokens": 256 * 4})
    train(config)
    files = [path for path in config.run_dir.rglob("*") if path.is_file() and path.name != LOCK]
    before = {path: path.stat().st_mtime_ns for path in files}
    train(config)
    assert "is finished" in capfd.readouterr().err
    changed = [path.name for path, time_ns in before.items() if path.stat().st_mtime_ns != time_ns]
    assert changed == []


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(make_config, capfd):
    config = make_config({"train.total_tokens": 256 * 8})
    whole = arrays(train(config))
    newest = saved.latest(config.run_dir)
    assert newest.name == "8"
    for path in (newest / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again = arrays(train(config))
    assert f"{newest}: the checkpoint is damaged" in capfd.readouterr().err
    assert all(left.tobytes() == right.tobytes() for left, right in zip(whole, again, strict=True))


def test_a_run_directory_refuses_another_model_and_names_the_differences(make_config):
    train(make_config({"train.total_tokens": 256 * 4}))
    with pytest.raises(ConfigError, match=r"model\.mlp_dim: 64 -> 96; seed: 0 -> 1"):
        train(make_config({"model.mlp_dim": 96, "seed": 1}))
    with pytest.raises(ConfigError, match="optimizer.name"):
        train(make_config({"optimizer.name": "muon"}))


def test_changed_batch_and_rate_count_from_now_on_and_are_an_event(make_config):
    first = make_config({"train.total_tokens": 256 * 4})
    train(first)
    changes = {"train.batch_tokens": 512, "optimizer.lr": 1e-3, "train.total_tokens": 256 * 4 + 512 * 4}
    train(make_config(changes))
    lines = read_lines(first.run_dir / "metrics.jsonl")
    assert [(line["step"], line["tokens"]) for line in lines] == [(3, 768), (4, 1024), (6, 2048), (8, 3072)]
    (event,) = [event for event in read_lines(first.run_dir / "events.jsonl") if event["kind"] == "config_changed"]
    assert event["changes"]["train.batch_tokens"] == [256, 512] and event["step"] == 4
    run = saved.read_run(saved.latest(first.run_dir))
    segments = run["loader"]["schedule"]
    assert [(s["first_step"], s["first_example"], s["batch_size"]) for s in segments] == [(0, 0, 8), (4, 32, 16)]
    assert run["loader"]["examples"] == 32 + 4 * 16


def test_how_a_step_is_computed_may_change(make_config):
    old = make_config()
    ways = {
        "loss.split": "vocabulary",
        "loss.block": 100,
        "loss.chunk": 7,
        "remat.policy": "full",
        "remat.mlp_chunks": 2,
        "kernels.attention": "blocked",
        "compiler.options": {"xla_cpu_enable_fast_math": "false"},
        "hardware.name": "v5p-128",
        "parallel.exchange_pieces": 2,
    }
    assert recorded_changes(old, make_config(**ways)) == {}
    assert set(recorded_changes(old, make_config(**ways, **{"loss.z_loss": 0.1}))) == {"loss.z_loss"}


def test_the_domain_of_a_held_out_source_may_change(make_config):
    key, before = "data.validation.model.domain", make_config()
    changed = make_config(**{key: "old"})
    assert (before.data.validation["model"].domain, changed.data.validation["model"].domain) == (None, "old")
    assert recorded_changes(before, changed) == {}
    with pytest.raises(ConfigError, match="domain.*former"):
        make_config(**{key: "former"})


def test_data_prepared_anew_is_refused(make_config, prepared, tmp_path):
    train(make_config({"train.total_tokens": 256 * 4}))
    other = tmp_path / "other"
    shutil.copytree(prepared / "prep", other)
    manifest = json.loads((other / "manifest.json").read_text())
    moved = make_config({"data.sources.prep.path": str(other)})
    train(moved)  # the same tokens elsewhere are fine
    manifest["shards"][0]["files"] = dict(reversed(manifest["shards"][0]["files"].items()))
    name = next(iter(manifest["shards"][0]["files"]))
    manifest["shards"][0]["files"][name]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"data\.sources\.prep: .* was prepared anew"):
        train(make_config({"data.sources.prep.path": str(other), "data.verify": "sizes", "train.total_tokens": 9999}))


def test_a_packed_run_resumes_on_the_same_packing_alone(make_config):
    packed = {"data.packing": "bestfit", "schedule.name": "constant"}
    whole = make_config(packed | {"train.total_tokens": 256 * 8}, name="whole")
    train(whole)
    train(make_config(packed | {"train.total_tokens": 256 * 4}, name="resumed"))
    resumed = make_config(packed | {"train.total_tokens": 256 * 8}, name="resumed")
    train(resumed)
    assert_same_arrays(saved_arrays(whole, 8), saved_arrays(resumed, 8))
    packing = [event for event in read_lines(whole.run_dir / "events.jsonl") if event["kind"] == "packing"]
    assert packing[0]["seq_len"] == 32 and packing[0]["sources"]["model"]["fill_rate"] > 0.99
    run = saved.read_run(saved.latest(whole.run_dir))
    check_indexes(run["indexes"], run["indexes"], whole)
    other = {name: {"32": "0" * 64} for name in run["indexes"]}
    with pytest.raises(ConfigError, match=r"data\.sources\.model: its documents were packed otherwise"):
        check_indexes(run["indexes"], other, whole)
    with pytest.raises(ConfigError, match=r"data\.packing: 'bestfit' -> 'concat'"):
        train(make_config({"train.total_tokens": 256 * 9}, name="resumed"))


def test_transformed_examples_are_the_same_after_a_resume_and_on_any_mesh(make_config):
    sources = {"data.sources.model.fim": {"rate": 1, "level": "token"}, "data.sources.prep.prefix_lm": {"rate": 1}}
    changes = sources | {"schedule.name": "constant", "optimizer.eps": 1e-3, "train.total_tokens": 256 * 8}
    whole, moved = make_config(changes, name="whole"), make_config(changes, name="moved")
    train(whole)
    train(make_config(changes | {"train.total_tokens": 256 * 4}, name="moved"))
    loop.train(moved)
    lines, others = (read_lines(config.run_dir / "metrics.jsonl")[-1] for config in (whole, moved))
    assert lines["target_tokens"] == others["target_tokens"]
    assert lines["loss"] == pytest.approx(others["loss"], rel=1e-5)
    plain = make_config({"train.total_tokens": 256 * 8}, name="plain")
    train(plain)
    line = read_lines(plain.run_dir / "metrics.jsonl")[-1]
    targets, all_targets = lines["tokens_by_source"], line["tokens_by_source"]
    assert targets["model"] == all_targets["model"] and targets["prep"] < 0.8 * all_targets["prep"]
    assert line["loss"] != lines["loss"]
    with pytest.raises(ConfigError, match=r"data\.sources\.model\.fim: .*-> None"):
        train(make_config({"train.total_tokens": 256 * 9}, name="moved"))


def test_a_config_without_a_checkpoint_yet_may_still_change(make_config):
    config = make_config({"faults.max_rewinds": 0})
    (config.run_dir / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(parents=True)  # a first save that was killed
    (config.run_dir / "config.yaml").write_text(to_yaml(config))
    train(make_config({"model.mlp_dim": 96, "train.total_tokens": 256 * 3}))


@pytest.mark.slow
def test_a_full_disk_keeps_the_checkpoint_before_and_names_the_path(make_config, tmp_path):
    config = make_config({"train.total_tokens": 256 * 6})
    finish(start(config, tmp_path))
    longer = make_config({"train.total_tokens": 256 * 12})
    path = tmp_path / "tiny.yaml"
    path.write_text(to_yaml(longer))
    # A limit on file sizes makes every larger write fail as a full disk does.
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "import maxlm.checkpoint as c; save = c.Checkpoints.save\n"
        "def limited(self, *args):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); return save(self, *args)\n"
        "c.Checkpoints.save = limited\n"
        f"sys.argv = ['maxlm', 'train', {str(path)!r}]\n"
        "from maxlm.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", limited], env=os.environ | ONE_DEVICE, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 1, result.stderr
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert str(longer.run_dir / "checkpoints") in message and "step 6 is intact" in message
    assert saved.latest(config.run_dir).name == "6"
    finish(start(longer, tmp_path))


def test_a_checkpoint_that_cannot_fit_is_refused_before_anything_is_written(make_config, monkeypatch):
    config = make_config({"train.total_tokens": 256 * 4})
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(
        SaveError, match=r"checkpoints: a checkpoint of 0\.00 GiB does not fit, .*no earlier checkpoint"
    ):
        train(config)
    assert os.listdir(config.run_dir / "checkpoints") == []


def test_a_directory_that_cannot_be_written_is_named(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"file/runs/tiny: cannot be written"):
        train(make_config({"runs_dir": str(tmp_path / "file" / "runs")}))


def test_steps_skipped_in_a_row_rewind_past_the_data_and_then_stop_with_4(make_config):
    policy = {"faults.max_skips": 2, "faults.max_rewinds": 1}
    train(make_config(policy | {"train.total_tokens": 256 * 4}))
    # After one step at this rate every loss is infinite or no number.
    ruinous = {"optimizer.lr": 1e30, "schedule.warmup_tokens": 0, "checkpoint.every_steps": None}
    ruinous |= {"optimizer.ema": 0.9}  # begins anew when the run is back where there was none
    config = make_config(policy | ruinous | {"logging.every_steps": 1})
    with pytest.raises(DivergedError) as stopped:
        train(config)
    assert stopped.value.exit_code == 4
    events = {event["kind"]: event for event in read_lines(config.run_dir / "events.jsonl")}
    assert events["rewind"]["examples_skipped"] > 0 and "diverged" in events
    assert events["rewind"]["to_step"] < events["rewind"]["from_step"]


def test_moments_in_host_memory_are_saved_and_come_back(make_config):
    host = {"optimizer.offload": "host"}
    whole, resumed = make_config({"train.total_tokens": 256 * 6}, name="whole"), make_config(name="resumed")
    train(whole)
    train(make_config(host | {"train.total_tokens": 256 * 3}, name="resumed"))
    state = train(make_config(host | {"train.total_tokens": 256 * 6}, name="resumed"))
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim}
    assert kinds == {"pinned_host"}
    assert_same_arrays(saved_arrays(whole, 6), saved_arrays(resumed, 6))


def test_host_memory_that_a_platform_has_not_is_refused():
    memories = [SimpleNamespace(kind="device")]
    device = SimpleNamespace(device_kind="toaster", addressable_memories=lambda: memories)
    with pytest.raises(ConfigError, match="optimizer.offload: toaster offers device memory and no pinned_host"):
        check_host_memory(device, "optimizer.offload", "null")


def test_nothing_to_load_names_the_path(tmp_path):
    from maxlm.evaluate.load import load

    with pytest.raises(DataError, match="holds no checkpoint"):
        load(tmp_path)


def test_signatures_of_urls_are_neither_told_nor_written_down(make_config):
    signed = {"data.sources.more": {"path": "s3://bucket/more?X-Signature=secret", "order": "as_written"}}
    old, new = make_config(), make_config(signed)
    changes = shown(recorded_changes(old, new))
    assert changes["data.sources.more"][1]["path"] == "s3://bucket/more"
    with pytest.raises(ConfigError, match="data.sources.more") as refused:
        recorded_changes(new, old)
    assert "secret" not in str(refused.value)
    assert recorded_changes(old, make_config({"data.cache.gib": 1})) == {}

import json
import os
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.errors import DataError, SaveError
from maxlm.report.metrics import EVAL, EVENTS, METRICS, Goodput, MetricsWriter, append_eval, read_lines

FLOATS = [1 / 3, 0.1, -0.0, 1e-45, 1.1754944e-38, 3.4028235e38, 1 + 2**-23, 16777217.0, 2.0**-149]


def writer(run_dir, resume_step=None, tensorboard=False) -> MetricsWriter:
    return MetricsWriter(run_dir, tensorboard, resume_step)


def log_steps(run_dir, steps, resume_step=None) -> None:
    with writer(run_dir, resume_step) as metrics:
        for step in steps:
            metrics.log({"step": step, "loss": 1 / (1 + step)})
            metrics.log_eval({"step": step, "source": "web", "loss": 2 / (1 + step)})


def steps_of(path) -> list[int]:
    return [line["step"] for line in read_lines(path)]


@pytest.mark.parametrize(
    "kind", [np.float64, np.float32, np.float16, jnp.float32, jnp.bfloat16], ids=lambda k: k.__name__
)
def test_numbers_read_back_to_the_same_bits(tmp_path, kind):
    with np.errstate(over="ignore"):
        values = [kind(value) for value in FLOATS]
    values = [value for value in values if np.isfinite(np.float64(value))]
    with writer(tmp_path) as metrics:
        for value in values:
            metrics.log({"step": 1, "loss": value, "by": {"web": value}})
    for line, value in zip(read_lines(tmp_path / METRICS), values, strict=True):
        expected = np.asarray(value)
        for found in (line["loss"], line["by"]["web"]):
            assert np.asarray(found, expected.dtype).tobytes() == expected.tobytes()


def test_integers_are_exact_beyond_the_floats(tmp_path):
    with writer(tmp_path) as metrics:
        metrics.log({"step": np.int32(7), "tokens": 2**62 + 1, "target_tokens": jnp.uint32(2**32 - 1)})
    assert read_lines(tmp_path / METRICS) == [{"step": 7, "tokens": 2**62 + 1, "target_tokens": 2**32 - 1}]


def test_a_value_that_is_not_finite_is_null_and_named(tmp_path):
    with writer(tmp_path) as metrics:
        by_source = {"web": jnp.float32("nan"), "code": 1.0}
        metrics.log({"step": 1, "loss": np.float32("inf"), "norm": -np.inf, "mfu": None, "loss_by_source": by_source})
        metrics.log({"step": 2, "loss": 1.0})
    first, second = (json.loads(text) for text in (tmp_path / METRICS).read_text().splitlines())
    assert first["loss"] is first["norm"] is first["loss_by_source"]["web"] is None
    assert first["nonfinite"] == ["loss", "norm", "loss_by_source.web"]
    assert "nonfinite" not in second


@pytest.mark.parametrize("value", [np.zeros(2), jnp.zeros((1,)), {1, 2}, b"x", 1j, {1: 2.0}], ids=repr)
def test_what_is_not_a_scalar_is_refused_by_its_key_and_leaves_no_line(tmp_path, value):
    with writer(tmp_path) as metrics, pytest.raises(TypeError, match=r"^loss_by_source\.web: expected a scalar"):
        metrics.log({"step": 1, "loss_by_source": {"web": value}})
    assert (tmp_path / METRICS).read_bytes() == b""


@pytest.mark.parametrize("line", [{"loss": 1.0}, {"step": 1.0}, {"step": True}], ids=repr)
def test_a_line_without_a_whole_step_is_refused(tmp_path, line):
    with writer(tmp_path) as metrics, pytest.raises(TypeError, match="step: expected an int"):
        metrics.log(line)


def test_a_line_cut_at_any_byte_is_not_read(tmp_path):
    log_steps(tmp_path, [1, 2])
    path = tmp_path / METRICS
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert steps_of(path) == [1]
    path.write_bytes(whole[:-1])  # all but its newline: nothing of the line is missing
    assert steps_of(path) == [1, 2]


def test_a_damaged_line_before_the_last_is_named(tmp_path):
    path = tmp_path / METRICS
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2 "):
        read_lines(path)


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / METRICS) == []


def test_a_killed_and_resumed_run_has_the_lines_of_one_that_was_not(tmp_path):
    log_steps(tmp_path / "whole", range(1, 11))
    log_steps(tmp_path / "parts", range(1, 9))
    for name in (METRICS, EVAL):
        path = tmp_path / "parts" / name
        path.write_bytes(path.read_bytes() + b'{"step": 9, "lo')  # killed in the middle of a line
    log_steps(tmp_path / "parts", range(6, 11), resume_step=5)
    for name in (METRICS, EVAL):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_last_line_that_lacks_only_its_newline_is_kept_whole(tmp_path):
    log_steps(tmp_path, [1, 2])
    path = tmp_path / METRICS
    path.write_bytes(path.read_bytes()[:-1])
    log_steps(tmp_path, [3], resume_step=2)
    assert steps_of(path) == [1, 2, 3]


def test_a_process_that_is_killed_loses_no_logged_line(tmp_path):
    script = f"""
import os, signal
from maxlm.report.metrics import MetricsWriter
metrics = MetricsWriter({str(tmp_path)!r}, False, None)
for step in range(1, 101):
    metrics.log({{"step": step, "loss": 1.0}})
metrics.log_event("checkpoint", 100)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == -9
    assert steps_of(tmp_path / METRICS) == list(range(1, 101))
    assert steps_of(tmp_path / EVENTS) == [100]


def test_events_survive_a_resume_and_a_rewind(tmp_path):
    with writer(tmp_path) as metrics:
        metrics.log_event("started", 0, mesh={"fsdp": 8})
        metrics.log_event("skipped", 9, count=np.int64(2))
    path = tmp_path / EVENTS
    path.write_bytes(path.read_bytes() + b'{"time"')
    with writer(tmp_path, resume_step=5) as metrics:
        metrics.log_event("resumed", 5)
        metrics.rewind(2)
        metrics.log_event("rewind", 5, to_step=2)
    events = read_lines(path)
    assert [event["kind"] for event in events] == ["started", "skipped", "resumed", "rewind"]
    assert events[0]["mesh"] == {"fsdp": 8} and events[1]["count"] == 2
    times = [event["time"] for event in events]
    assert times == sorted(times) and all(time.endswith("Z") for time in times)


def test_a_rewind_drops_the_steps_that_are_done_again(tmp_path):
    with writer(tmp_path) as metrics:
        for step in (1, 2, 3):
            metrics.log({"step": step})
        metrics.rewind(1)
        metrics.log({"step": 2})
    assert steps_of(tmp_path / METRICS) == [1, 2]


def test_resuming_from_no_checkpoint_starts_over(tmp_path):
    log_steps(tmp_path, [0, 1])
    log_steps(tmp_path, [0, 1, 2], resume_step=-1)
    assert steps_of(tmp_path / METRICS) == steps_of(tmp_path / EVAL) == [0, 1, 2]


def test_a_new_run_does_not_mix_with_an_earlier_one(tmp_path):
    log_steps(tmp_path, [1])
    before = (tmp_path / METRICS).read_bytes()
    with pytest.raises(DataError, match=r"metrics\.jsonl: holds lines of an earlier run"):
        writer(tmp_path)
    assert (tmp_path / METRICS).read_bytes() == before


def test_a_full_disk_is_one_clear_error_and_keeps_what_was_there(tmp_path):
    log_steps(tmp_path, [1, 2])
    before = (tmp_path / METRICS).read_bytes()
    (tmp_path / "metrics.new").symlink_to("/dev/full")
    with pytest.raises(SaveError, match=r"metrics\.jsonl: cannot be rewritten .*No space left"):
        writer(tmp_path, resume_step=1)
    assert (tmp_path / METRICS).read_bytes() == before


def test_empty_files_are_a_new_run(tmp_path):
    log_steps(tmp_path, [])
    log_steps(tmp_path, [1])
    assert steps_of(tmp_path / METRICS) == [1]


def summaries(folder) -> list[tuple[int, str, float]]:
    """(step, tag, value) in the order they were written; a purge stands as (step, "purge", 0)."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    files = [path for path in folder.iterdir() if path.is_file()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.HasField("session_log"):
                found.append((event.step, "purge", 0.0))
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def test_tensorboard_holds_what_the_lines_hold(tmp_path):
    with writer(tmp_path, tensorboard=True) as metrics:
        metrics.log({"step": 10, "loss": 1.5, "mfu": None, "loss_by_source": {"web": 2.5}, "tokens": 64})
        metrics.log_eval({"step": 10, "source": "code", "loss": 0.5})
    assert sorted(summaries(tmp_path / "tensorboard")) == [
        (10, "eval/code/loss", 0.5),
        (10, "loss_by_source/web", 2.5),
        (10, "train/loss", 1.5),
        (10, "train/tokens", 64.0),
    ]


def test_tensorboard_forgets_the_steps_that_are_done_again(tmp_path):
    with writer(tmp_path, tensorboard=True) as metrics:
        metrics.log({"step": 10, "loss": 1.5})
    with writer(tmp_path, resume_step=5, tensorboard=True) as metrics:
        metrics.log({"step": 10, "loss": 1.25})
    assert (6, "purge", 0.0) in summaries(tmp_path / "tensorboard")


TASK = {"step": 10, "tokens": 64, "task": "rivers", "metrics": {"acc": 0.25, "acc_norm": None, "mean": 0.5}, "items": 8}


def test_tensorboard_names_tasks_by_their_metrics_and_tells_averages_apart(tmp_path):
    with writer(tmp_path, tensorboard=True) as metrics:
        metrics.log_eval({"step": 10, "source": "web", "loss": 0.5, "weights": "ema"})
        metrics.log_eval(TASK | {"stderr": {"acc": 0.125}, "settings": {"limit": 8}})
        metrics.log_eval(TASK | {"weights": "ema"})
    assert sorted(summaries(tmp_path / "tensorboard")) == [
        (10, "eval/web (ema)/loss", 0.5),
        (10, "task/rivers (ema)/acc", 0.25),
        (10, "task/rivers (ema)/mean", 0.5),
        (10, "task/rivers/acc", 0.25),
        (10, "task/rivers/mean", 0.5),
    ]


def test_a_line_from_outside_stands_among_those_of_a_run_under_way(tmp_path):
    with writer(tmp_path, tensorboard=True) as metrics:
        metrics.log_eval({"step": 5, "source": "web", "loss": 1.0})
        append_eval(tmp_path, TASK, tensorboard=True)
        append_eval(tmp_path, TASK | {"step": np.int64(5)}, tensorboard=False)
        metrics.log_eval({"step": 20, "source": "web", "loss": 0.5})
    assert steps_of(tmp_path / EVAL) == [5, 10, 5, 20]
    assert read_lines(tmp_path / EVAL)[1] == TASK
    # A newer file in the run's own folder would end TensorBoard's reading of the run's.
    assert [tag for _, tag, _ in summaries(tmp_path / "tensorboard")] == ["eval/web/loss"] * 2
    expected = [(10, "task/rivers/acc", 0.25), (10, "task/rivers/mean", 0.5)]
    assert summaries(tmp_path / "tensorboard" / "evaluated") == expected


@pytest.mark.parametrize("tail", [b'{"step": 9, "lo', b'{"step": 9}'], ids=["half", "all but its newline"])
def test_a_line_from_outside_comes_behind_whole_lines_alone(tmp_path, tail):
    log_steps(tmp_path, [1, 2])
    path = tmp_path / EVAL
    path.write_bytes(path.read_bytes() + tail)
    before = path.stat().st_ino
    append_eval(tmp_path, TASK, tensorboard=False)
    assert steps_of(path) == [1, 2, *([9] if tail.endswith(b"}") else []), 10]
    assert path.stat().st_ino == before  # a run under way goes on writing to this very file


def test_a_line_from_outside_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / EVAL).symlink_to("/dev/full")
    with pytest.raises(SaveError, match=r"eval\.jsonl: cannot be written .*No space left"):
        append_eval(tmp_path, TASK, tensorboard=False)
    with pytest.raises(SaveError, match=r"eval\.jsonl: cannot be written .*No such file"):
        append_eval(tmp_path / "missing", TASK, tensorboard=False)


def test_goodput_is_productive_over_wall_time():
    goodput = Goodput(began=100.0)
    assert goodput.ratio(100.0) == 0.0
    goodput.productive(30.0)
    goodput.productive(15.0)
    assert goodput.ratio(160.0) == 0.75
    assert goodput.ratio(110.0) == 1.0


def test_of_several_processes_those_that_do_not_write_touch_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run", True, None, write=False) as metrics:
        metrics.log({"step": 1, "loss": 1.0, "loss_by_source": {"web": 1.0}})
        metrics.log_eval({"step": 1, "source": "web", "loss": 1.0})
        metrics.log_event("started", 0)
        metrics.flush()
        metrics.rewind(0)
        with pytest.raises(TypeError, match="step"):  # a fault is a fault in all of them
            metrics.log({"loss": 1.0})
    assert not (tmp_path / "run").exists()

import os
import pty
import re
import subprocess
import sys
import time

import pytest

from maxlm.report import progress
from maxlm.report.progress import Progress, StepTimer, compact, duration, live_parts, plain_line, track

LINE = {"step": 120, "tokens": 983040, "loss": 4.2134, "learning_rate": 9.1e-4, "tokens_per_second": 12345.4}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (960, "960"),
        (1000, "1.0K"),
        (960_000, "960.0K"),
        (999_949, "999.9K"),
        (999_950, "1.0M"),
        (1.2e6, "1.2M"),
        (3.4e9, "3.4B"),
        (15e12, "15.0T"),
    ],
)
def test_counts_are_short(count, text):
    assert compact(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (42.4, "42s"),
        (59.6, "1m00s"),
        (130, "2m10s"),
        (3599.4, "59m59s"),
        (3599.6, "1h00m"),
        (11100, "3h05m"),
        (86399, "1d 0h"),
        (12 * 86400 + 4 * 3600, "12d 4h"),
    ],
)
def test_durations_carry_into_the_larger_unit(seconds, text):
    assert duration(seconds) == text


def test_one_long_pause_does_not_move_the_time_left():
    timer = StepTimer()
    assert timer.left(10) is None
    now = 0.0
    for step in range(10, 110, 10):
        now += 5.0 + (600.0 if step == 50 else 0.0)  # an evaluation at step 50
        timer.add(step, now)
    assert timer.left(100) == pytest.approx(50.0)


def test_the_time_left_starts_from_the_first_line_and_survives_a_rewind():
    timer = StepTimer()
    timer.add(10, now=100.0, step_seconds=2.0)
    assert timer.left(5) == 10.0
    timer.add(5, now=200.0, step_seconds=50.0)
    assert timer.left(1) == 2.0
    timer.add(10, now=215.0)
    assert timer.left(1) == 2.5


def test_plain_lines_are_aligned():
    lines = [
        plain_line(LINE, 1950, 130.0),
        plain_line(LINE | {"step": 1950, "tokens": 15_974_400, "loss": 10.5}, 1950, 3.0),
        plain_line({"step": 1, "tokens": 0, "loss": None}, 1950, None),
    ]
    assert lines[0] == ("step   120/1,950  tokens 983.0K  loss  4.213  lr 9.1e-04     12,345 tok/s   2m10s left")
    assert len({len(line) for line in lines}) == 1


def test_plain_progress_goes_to_stderr_without_control_characters(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as continuous integration does
    with Progress("demo", 1950, 0) as shown:
        shown.update(LINE)
        shown.note("evaluation [bold]web[/bold] loss 4.1")
    out, err = capsys.readouterr()
    assert out == ""
    assert all(character.isprintable() for character in err.replace("\n", ""))
    assert err.count("\n") == 2 and "[bold]web[/bold]" in err and "tokens 983.0K" in err


def test_of_several_processes_one_speaks(capsys):
    with Progress("demo", 1950, 0, shown=False) as silent:
        silent.update(LINE)
        silent.note("checkpoint saved")
    assert capsys.readouterr() == ("", "")


def test_what_keeps_the_steps_waiting_is_told_every_half_minute(capsys, monkeypatch):
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    for shown in (True, False):
        with Progress("demo", 1950, 0, shown=shown) as progress:
            assert list(progress.track(iter("abcd"), "scoring facts", 4, "requests")) == list("abcd")
        expected = "scoring facts  2/4 requests  40s  0 requests/s  40s left\n"
        expected += "scoring facts  4/4 requests  1m20s  0 requests/s\n"
        assert capsys.readouterr() == ("", expected if shown else "")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 160])
def test_the_live_line_fits_the_terminal_and_keeps_the_step(width):
    for line in (LINE, {"step": 120}):
        parts = live_parts("a-name-of-some-length", line, 1950, 130.0, width)
        assert len("".join(parts)) <= width
        assert "120/1,950" in parts[2]


def test_the_bar_fills_with_the_steps():
    bars = [live_parts("demo", LINE | {"step": step}, 100, 1.0, 120)[1] for step in (0, 50, 100)]
    assert [round(bar.count("━") / len(bar.strip()), 1) for bar in bars] == [0.0, 0.5, 1.0]


def on_a_terminal(script: str) -> tuple[str, str, int]:
    """What a script writes to a terminal on stderr and to a pipe on stdout, and its exit status."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=slave, env=environment)
    os.close(slave)
    screen = b""
    while True:
        try:
            screen += (part := os.read(master, 65536))
        except OSError:  # Linux reports the closed end so
            part = b""
        if not part:
            break
    os.close(master)
    return screen.decode(), process.communicate()[0].decode(), process.returncode


def test_what_keeps_the_steps_waiting_stands_in_the_live_line():
    """A second live display beside that of the steps would be refused by rich."""
    script = f"""
import time
from maxlm.report.progress import Progress
with Progress("demo", 1950, 0) as progress:
    progress.update({LINE})
    for item in progress.track(range(8), "scoring facts", unit="requests"):
        time.sleep(0.2)
    time.sleep(0.6)
"""
    screen, out, status = on_a_terminal(script)
    assert (out, status) == ("", 0)
    assert re.search(r"scoring facts  [1-7]/8 requests  \ds  \d requests/s  \ds left", screen)
    assert screen.rindex("tok/s") > screen.rindex("scoring facts")


def test_a_failure_leaves_the_terminal_as_it_was_and_stdout_clean():
    script = f"""
from maxlm.report.progress import Progress
with Progress("demo", 1950, 0) as progress:
    progress.update({LINE})
    progress.note("checkpoint [saved]")
    print("a result")
    raise SystemExit(4)
"""
    screen, out, status = on_a_terminal(script)
    assert (out, status) == ("a result\n", 4)
    assert "demo" in screen and "120/1,950" in screen and "checkpoint [saved]" in screen
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")  # the cursor is shown again


def test_track_yields_everything_and_is_silent_when_quick(capsys):
    assert list(track(iter(range(5)), "verifying")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


def test_track_reports_what_lasts(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    assert list(track([1, 2, 3], "verifying")) == [1, 2, 3]
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split("  ")[:2] for line in err.splitlines()] == [
        ["verifying", "1/3"],
        ["verifying", "2/3"],
        ["verifying", "3/3"],
        ["verifying", "3/3"],
    ]

"""What a run says: figures in the funnel, tables that fit, pace, and progress on a terminal."""

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from data_prep import console
from data_prep.funnel import Amount, FunnelRow, print_funnel, share

LONG = "language is not certain enough: the best score is below the threshold"
ROWS = [
    FunnelRow(
        "ingest", Amount(2_000_000_100, 8 * 10**12), Amount(2_000_000_000, 8 * 10**12), {"bad record": Amount(100, 0)}
    ),
    FunnelRow(
        "language",
        Amount(2_000_000_000, 8 * 10**12),
        Amount(500_000_000, 6 * 10**12),
        {LONG: Amount(1_500_000_000, 2 * 10**12), "no such thing": Amount(0, 0)},
        {"folded": Amount(7, -5000), "untouched": Amount(0, 0)},
        {"web": Amount(0, 4 * 10**12), "code": Amount(0, 2 * 10**12)},
    ),
]


def printed(width, rows=ROWS, rates=None):
    with open(os.devnull, "w") as sink:
        recorder = Console(record=True, width=width, file=sink)
        print_funnel(recorder, rows, {"web": 4.0, "code": 2.0} if rates is None else rates)
    return [line.rstrip() for line in recorder.export_text().splitlines() if line.strip()]


def cells(lines, label):
    (line,) = [line for line in lines if line.strip().startswith(label)]
    return re.split(r"\s{2,}", line.strip())


@pytest.mark.parametrize("width", [80, 120])
def test_the_funnel_fits_and_hides_nothing_but_zeros(width):
    lines = printed(width)
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    text = " ".join(lines)
    assert "bad record" in text and "folded" in text and "no such" not in text and "untouched" not in text
    assert cells(lines, "read")[1:] == ["2,000,000,100", "8.0 TB"]
    # 4 TB at 4 bytes a token and 2 TB at 2.
    assert cells(lines, "language  ")[1:] == ["500,000,000", "25.0%", "6.0 TB", "75.0%", "2.0 T"]
    assert cells(lines, "kept of all")[1:] == ["500,000,000", "25.0%", "6.0 TB", "75.0%", "2.0 T"]
    assert cells(lines, "bad record")[1:] == ["-100", "<0.1%"]
    assert cells(lines, "folded")[1:] == ["(7)", "<0.1%", "+5.0 kB", "<0.1%", "+1.7 K"]
    assert re.search(r"language is.* -1,500,000,000 +75.0% +-2.0 TB +25.0% +-666.7 B", text)


def test_a_funnel_before_there_are_tokens_has_no_column_of_them():
    assert "tokens" not in " ".join(printed(80, rates={})) and "tokens" in " ".join(printed(80))


@pytest.mark.parametrize(
    "part, whole, text",
    [(0, 10, "0.0%"), (1, 10**6, "<0.1%"), (10**6 - 1, 10**6, ">99.9%"), (5, 5, "100.0%"), (1, 8, "12.5%"), (0, 0, "")],
)
def test_a_share_never_hides_a_loss(part, whole, text):
    assert share(part, whole) == text


@pytest.mark.parametrize("number, text", [(999, "999 B"), (999_960, "1.0 MB"), (1500, "1.5 kB"), (3e15, "3,000.0 TB")])
def test_sizes_have_decimal_units(number, text):
    assert console.size(number) == text


def test_pace_counts_from_the_first_report(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    pace = console.Pace(10_000)
    now[0] += 50
    assert pace.text(1000) == "1.0 kB of 10.0 kB, 0 B/s"
    now[0] += 2
    assert pace.text(3000) == "3.0 kB of 10.0 kB, 1.0 kB/s, 7 s left"
    assert console.Pace(0).text(5000) == "5.0 kB, 0 B/s"
    assert [console.duration(seconds) for seconds in (59, 61, 3725)] == ["59 s", "1 min 01 s", "1 h 02 min"]


def test_progress_is_a_line_every_ten_seconds_where_there_is_no_terminal(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with open(os.devnull, "w") as sink:
        recorder = Console(record=True, width=40, file=sink)
        with console.progress(recorder, "ingest", 9000) as report:
            for second in range(26):
                now[0] = second
                report(second * 100)
    assert recorder.export_text().splitlines() == [
        "ingest: 1.0 kB of 9.0 kB, 100 B/s, 1 min 20 s left",
        "ingest: 2.0 kB of 9.0 kB, 100 B/s, 1 min 10 s left",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_a_terminal_sees_a_bar_for_every_stage_that_works(tmp_path, pipeline, every_stage):
    import pty

    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(pipeline(**every_stage, workers=2).model_dump(mode="json")))
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-m", "data_prep", "run", str(tmp_path / "pipeline.yaml")]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment) as process:
        os.close(theirs)
        seen = read_all(ours)
        try:
            process.wait(60)
        finally:
            # One that still runs waits for somebody who reads.
            process.kill()
    os.close(ours)
    assert process.returncode == 0
    for stage in ("ingest", "tokenizer", "tokenize", "shuffle"):
        assert re.search(rf"{stage} .*━.* of .*B, .*/s", seen), stage
    assert "kept of all" in seen


def read_all(descriptor):
    pieces, deadline = [], time.monotonic() + 300
    while time.monotonic() < deadline and select.select([descriptor], [], [], 120)[0]:
        try:
            pieces.append(os.read(descriptor, 65536))
        except OSError:
            break
    return b"".join(pieces).decode(errors="replace")

"""Servers fail and programs are killed: nothing is lost, nothing is paid twice, and no limit is passed."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from answer_server import AnswerServer
from rich.console import Console

from data_prep.config import Synthesis
from data_prep.synthesize.budget import Budget
from data_prep.synthesize.client import _retry_after
from data_prep.synthesize.journal import JOURNAL, Commits, Journal
from data_prep.synthesize.progress import Progress, dollars
from data_prep.synthesize.run import synthesize
from maxlm.config import validate
from maxlm.errors import ConfigError, DataError, MaxlmError, SaveError

ROOT = Path(__file__).parents[2]
SCHEMA = {"type": "object", "required": ["problem", "solution"]}


@pytest.fixture
def recipe(tmp_path):
    """The file of a recipe over numbered seeds, and its configuration; sections come from keyword arguments."""

    def make(asked, seeds=60, **sections):
        lines = [json.dumps({"id": f"s{n}", "text": f"Seed {n} is about the number {n * n}."}) for n in range(seeds)]
        (tmp_path / "seeds.jsonl").write_text("\n".join(lines) + "\n")
        (tmp_path / "question.txt").write_text("Ask about {text}")
        values = {
            "name": "test",
            "output": str(tmp_path / "out"),
            "workers": 1,
            "ingest": {"sources": {"web": {"kind": "jsonl", "path": str(tmp_path / "seeds.jsonl"), "id_field": "id"}}},
            "server": {"url": asked.url, "model": "made-up", "longest_pause": 0.05} | sections.pop("server", {}),
            "generate": {"prompts": {"qa": {"file": str(tmp_path / "question.txt")}}, "max_tokens": 100},
            "answer": {"schema": SCHEMA},
            "text": "{problem}\n\n{solution}",
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values | sections))
        return validate(values | sections, Synthesis, "test")

    return make


def run(config):
    with open(os.devnull, "w") as sink:
        console = Console(record=True, width=200, file=sink)
        try:
            synthesize(config, console)
        finally:
            run.printed = console.export_text()
    return summary_of(config)


def summary_of(config):
    return json.loads((config.directory / "synthesis.json").read_text())


def documents_of(config):
    return [json.loads(line) for path in config.directory.glob("documents-*") for line in path.open()]


def start(tmp_path, **options):
    """The command in a process of its own."""
    line = [sys.executable, "-m", "data_prep", "synthesize", str(tmp_path / "recipe.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, **options
    )


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def rows(config, query):
    with sqlite3.connect(config.directory / JOURNAL) as database:
        return database.execute(query).fetchall()


def outcomes(server):
    return Counter(entry.outcome for entry in server.entries)


@pytest.mark.parametrize("idempotent", [False, True])
def test_nothing_is_lost_or_paid_twice_whatever_fails_and_when_it_is_killed(tmp_path, recipe, idempotent):
    """200 seeds, every fault, and two kills in the middle, against the server's own ledger."""
    faults = {"500": 0.06, "503": 0.02, "429": 0.06, "408": 0.02, "drop": 0.04, "lost": 0.04, "hang": 0.02}
    faults |= {"prose": 0.05, "shape": 0.05, "cut": 0.03}
    with AnswerServer(faults, latency=0.01, hang=0.6, idempotent=idempotent, seed=1) as server:
        config = recipe(
            server,
            seeds=200,
            server={"concurrency": 16, "timeout": 0.4, "attempts": 20},
            answer={"schema": SCHEMA, "repairs": 2},
        )
        for part in (60, 140):
            process = start(tmp_path)
            wait_for(lambda part=part: outcomes(server)["answered"] >= part)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        done = start(tmp_path)
        out, error = done.communicate(timeout=60)
        assert done.returncode == 0, error
        wait_for(lambda: not server.at_once)
    assert {"500", "503", "429", "408", "drop", "lost", "answered"} <= outcomes(server).keys()
    summary = summary_of(config)
    assert summary["seeds"] == 200 and summary["left"] == 0
    assert summary["kept"] + sum(summary["dropped"].values()) == 200 and summary["kept"] > 190
    assert summary["dropped"].keys() <= {"answer: not JSON", "answer: schema", "answer: cut off"}
    # Every question has an answer: that which the server gave, and gave once; more only where an attempt is in doubt.
    complete = Counter(entry.key for entry in server.entries if entry.outcome in ("answered", "repeated"))
    charged = Counter(entry.key for entry in server.entries if entry.output_tokens)
    in_doubt = Counter(key for (key,) in rows(config, "SELECT key FROM attempts WHERE outcome IS NULL"))
    answered = {key for (key,) in rows(config, "SELECT key FROM answers")}
    assert answered == set(complete)
    assert all(complete[key] <= 1 + in_doubt[key] for key in complete)
    assert all(charged[key] <= (1 if idempotent else 1 + in_doubt[key]) for key in charged)
    assert summary["answered"] == len(answered) and summary["in_doubt"] == in_doubt.total() > 0
    assert f"in doubt: at most {in_doubt.total()} requests" in out
    # A key is one body.
    assert len({(entry.key, entry.body) for entry in server.entries}) == len({entry.key for entry in server.entries})
    made = [key for entry in documents_of(config) for key in entry["synthesis"]["requests"]]
    assert len(made) == len(set(made)) and set(made) <= answered


def test_a_run_that_was_killed_ends_with_the_documents_of_one_that_was_not(tmp_path, recipe):
    def documents(config):
        return [(entry["id"], entry["text"]) for entry in documents_of(config)]

    with AnswerServer(latency=0.01) as server:
        config = recipe(server)
        process = start(tmp_path)
        wait_for(lambda: outcomes(server)["answered"] >= 20)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        run(config)
        killed = documents(config)
        whole = recipe(server, output=str(tmp_path / "whole"))
        run(whole)
    assert len(killed) == 60 and killed == documents(whole)


PRICES = {"prices": {"input": 1000.0, "output": 4000.0}}


@pytest.mark.parametrize("usage", [True, False])
def test_the_cost_limit_holds_with_everything_in_flight(recipe, usage):
    """Answers cost some cents; the limit is enough for a part of them."""
    faults = {"lost": 0.1, "500": 0.1}
    with AnswerServer(faults, latency=0.01, usage=usage) as server:
        limit = 5.0 if usage else 20.0
        config = recipe(server, max_cost=limit, server={"concurrency": 32, "attempts": 20}, **PRICES)
        first = run(config)
        assert first["ended"] == "max_cost" and 0 < first["kept"] < 60 and first["left"] == 60 - first["kept"]
        assert "max_cost is reached" in run.printed
        spent = first["cost"] + first["cost_in_doubt"]
        # What is left is less than the most that one more request can cost.
        assert limit - 0.9 < spent <= limit
        ledger = sum(entry.input_tokens * 1e-3 + entry.output_tokens * 4e-3 for entry in server.entries)
        assert ledger <= spent
        if usage:
            assert first["uncounted"] == 0
            assert first["cost"] == pytest.approx(
                sum(e.input_tokens * 1e-3 + e.output_tokens * 4e-3 for e in server.entries if e.outcome == "answered")
            )
        else:
            assert first["uncounted"] == first["answered"]
        again = run(config)
        assert again["kept"] == first["kept"] and again["requests"] == first["requests"]
        rest = run(config.model_copy(update={"max_cost": 200.0}))
        assert rest["left"] == 0 and rest["kept"] == 60 and rest["ended"] == "done"


def test_what_was_in_flight_at_a_kill_counts_for_the_limit(tmp_path, recipe):
    with AnswerServer(latency=3) as server:
        recipe(server, max_cost=20.0, server={"concurrency": 8}, **PRICES)
        process = start(tmp_path)
        wait_for(lambda: server.at_once == 8)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with AnswerServer(latency=0) as server:
        summary = run(recipe(server, max_cost=20.0, server={"concurrency": 8}, **PRICES))
    assert summary["in_doubt"] == 8 and summary["cost_in_doubt"] > 8 * 0.4
    assert summary["cost"] + summary["cost_in_doubt"] <= 20


def test_seeds_that_share_an_id_are_refused_before_anything_is_asked(tmp_path, recipe):
    """Their requests could not be told apart."""
    with AnswerServer() as server:
        config = recipe(server)
        path = tmp_path / "seeds.jsonl"
        path.write_text(path.read_text() * 2)
        with pytest.raises(DataError, match="more than one document has the id"):
            run(config)
        assert not server.entries and not (config.directory / JOURNAL).exists()


def test_a_reservation_waits_for_room_that_others_may_leave():
    class Request:
        input_tokens, output_tokens = 0, 1_000_000

    async def use():
        budget = Budget(validate({"input": 0, "output": 1}, type(Budget(None, None, 0).prices), ""), 1.5, 0.0)
        worst = await budget.reserve(Request)
        waiting = asyncio.create_task(budget.reserve(Request))
        await asyncio.sleep(0)
        assert budget.committed == 1.0 and not waiting.done()
        budget.settle(worst, 0.25)
        await waiting
        return budget.committed

    assert asyncio.run(use()) == 1.25


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_an_interrupted_run_waits_for_what_may_be_paid_and_keeps_it(tmp_path, recipe, number, code):
    with AnswerServer(latency=0.5) as server:
        config = recipe(server, server={"concurrency": 8})
        process = start(tmp_path)
        wait_for(lambda: outcomes(server)["answered"] >= 8 and server.at_once == 8)
        process.send_signal(number)
        out, error = process.communicate(timeout=20)
    assert process.returncode == code and "the same command goes on" in error
    assert "interrupted; waiting for what is in flight" in out
    summary = summary_of(config)
    assert summary["kept"] == summary["answered"] == summary["requests"] == outcomes(server)["answered"]
    assert summary["in_doubt"] == 0 and summary["left"] == 60 - summary["kept"] and summary["ended"] == "interrupted"


def test_a_second_interrupt_gives_up_what_is_in_flight(tmp_path, recipe):
    with AnswerServer(latency=0, hang=20, faults={"hang": 1.0}) as server:
        config = recipe(server, server={"concurrency": 8})
        process = start(tmp_path)
        wait_for(lambda: server.at_once == 8)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: "interrupted" in process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=10)
    assert process.returncode == 130 and "Traceback" not in error
    assert rows(config, "SELECT count(*) FROM attempts WHERE outcome IS NULL") == [(8,)]


def test_failures_in_a_row_stop_a_run_and_it_goes_on_when_the_server_does(tmp_path, recipe):
    with AnswerServer(latency=0, faults={"500": 1.0}) as server:
        config = recipe(server, server={"concurrency": 4, "max_failures": 12})
        process = start(tmp_path)
        _, error = process.communicate(timeout=30)
        assert process.returncode == 1 and len(error.splitlines()) == 1
        assert "12 failures in a row, the last one: status 500" in error
        assert 12 <= len(server.entries) <= 16
        server.faults = {}
        assert run(config)["kept"] == 60
        assert summary_of(config)["in_doubt"] == 0
    with pytest.raises(MaxlmError, match="16 failures in a row, the last one: no connection"):
        run(recipe(server, server={"concurrency": 2, "attempts": 20}, output=str(tmp_path / "none")))


def test_a_request_that_fails_too_often_leaves_its_seed_for_later(recipe):
    with AnswerServer(latency=0, faults={"503": 0.6}, seed=3) as server:
        config = recipe(server, server={"attempts": 2})
        with pytest.raises(MaxlmError, match=r"\d+ seeds have no answer after 2 attempts each"):
            run(config)
        first = summary_of(config)
        assert 0 < first["left"] < 60 and first["kept"] == 60 - first["left"] and first["ended"] == "error"
        assert f"the same command asks about the {first['left']} seeds that are left" in run.printed
        server.faults = {}
        assert run(config)["kept"] == 60 == outcomes(server)["answered"]


@pytest.mark.parametrize("status", ["400", "404", "422"])
def test_a_request_that_the_server_does_not_take_stops_the_run(recipe, status):
    with AnswerServer(latency=0, faults={status: 1.0}) as server:
        with pytest.raises(ConfigError, match=f"{server.url}: .*status {status} .*made to fail"):
            run(recipe(server, server={"concurrency": 4}))
        assert len(server.entries) <= 4 and summary_of(recipe(server))["in_doubt"] == 0


def test_retry_after_is_seconds_or_a_date_and_holds_all_requests_back(recipe, monkeypatch):
    assert _retry_after({"retry-after": "1.5"}) == 1.5
    assert _retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, lambda: 90.0) == 10
    assert _retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, lambda: 200.0) == 0
    assert _retry_after({"retry-after": "1e99"}) == 3600
    assert _retry_after({"retry-after": "soon"}) == _retry_after({}) == 0
    monkeypatch.setattr("answer_server.RETRY_AFTER", 1.0)
    arrivals = []

    class Limiting(AnswerServer):
        """Refuses its first request."""

        def draw(self):
            arrivals.append(time.monotonic())
            return "429" if len(arrivals) == 1 else None

    with Limiting(latency=0.1) as server:
        assert run(recipe(server, seeds=20, server={"concurrency": 4}))["kept"] == 20
    # Three others were on their way. What began after the refusal waits, whoever asks.
    assert outcomes(server)["429"] == 1 and all(at - arrivals[0] > 0.9 for at in arrivals[4:])


def test_a_torn_journal_has_what_was_committed_before(tmp_path):
    """Power goes while a commit is written: its pages are in the log in part."""
    with Journal(tmp_path) as journal:

        async def attempts():
            commits = Commits(journal)
            for number in range(20):
                await commits.open_attempt(f"key {number}", 1.0)
            commits.close()

        asyncio.run(attempts())
        data = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    log = data[f"{JOURNAL}-wal"]
    for number, cut in enumerate((len(log) - 1, len(log) - 5000, len(log) // 2, 10)):
        torn = tmp_path / str(number)
        torn.mkdir()
        (torn / JOURNAL).write_bytes(data[JOURNAL])
        (torn / f"{JOURNAL}-wal").write_bytes(log[:cut] + b"\xff" * 100)
        with Journal(torn) as journal:
            found = journal.totals().in_doubt
            assert found == journal.next_attempt() - 1 and (found < 20 if cut < len(log) - 4000 else found >= 19)


def test_commits_that_come_together_are_synced_together(tmp_path):
    with Journal(tmp_path) as journal:
        sizes, write = [], journal.write
        journal.write = lambda statements: (sizes.append(len(statements)), write(statements))

        async def attempts():
            commits = Commits(journal)
            numbers = await asyncio.gather(*(commits.open_attempt(f"key {number}", 0.0) for number in range(50)))
            commits.close()
            return numbers

        assert sorted(asyncio.run(attempts())) == list(range(1, 51))
        assert sum(sizes) == 50 and len(sizes) <= 3 and journal.totals().requests == 50


def test_a_full_disk_stops_the_run_with_one_line(recipe):
    with AnswerServer(latency=0) as server:
        config = recipe(server)
        with Journal(config.directory) as journal:
            journal._database.execute(
                f"PRAGMA max_page_count={journal._database.execute('PRAGMA page_count').fetchone()[0]}"
            )

            async def fill():
                commits = Commits(journal)
                try:
                    for number in range(1000):
                        await commits.open_attempt("key" * 1000, float(number))
                finally:
                    commits.close()

            with pytest.raises(SaveError, match="journal.sqlite: cannot be written .*full"):
                asyncio.run(fill())
        assert run(config)["kept"] == 60


def test_progress_says_rates_cost_and_the_time_left(monkeypatch):
    with open(os.devnull, "w") as sink:
        console = Console(record=True, width=200, file=sink)
        with Progress(console, 100) as progress:
            progress.done, progress.known, progress.answers, progress.tokens = 40, 20, 30, 9000
            assert progress.text(1.234, 10.0) == ("40 of 100 seeds, 3.0 requests/s, 900 tokens/s, $1.23, 30 s left")
            assert progress.text(None, 10.0) == "40 of 100 seeds, 3.0 requests/s, 900 tokens/s, 30 s left"
            progress.show(None)
            assert console.export_text(clear=False) == ""
            now = time.monotonic()
            monkeypatch.setattr(time, "monotonic", lambda: now + 11)
            progress.show(None)
            progress.show(None)
    assert console.export_text().count("synthesize: 40 of 100 seeds") == 1
    assert [dollars(amount) for amount in (0, 1234.5, 0.1, 0.0123, 1e-5)] == [
        "$0.00", "$1,234.50", "$0.10", "$0.012", "<$0.0001",
    ]  # fmt: skip

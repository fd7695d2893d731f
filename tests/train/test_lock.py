"""One training at a time in a run directory."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from threading import Timer

import jax
import pytest

from maxlm.errors import ConfigError
from maxlm.parallel.agreement import wait_until
from maxlm.train.lock import LOCK, locked
from maxlm.train.run import Run

HOLD = """
import sys
from pathlib import Path
from maxlm.train.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_training_is_refused_before_it_removes_what_the_first_is_saving(make_config):
    config = make_config()
    saving = config.run_dir / "checkpoints" / "7.orbax-checkpoint-tmp"
    with locked(config.run_dir):
        saving.mkdir(parents=True)
        with pytest.raises(ConfigError, match=rf"process {os.getpid()} on .* is training this run; wait"):
            Run(config, jax.devices()[:1]).__enter__()
        assert saving.is_dir()
    with Run(config, jax.devices()[:1]):  # no lock of the refused one, nor of the first, is left over
        assert wait_until(lambda: not saving.exists(), 20)  # in the background


def test_a_killed_training_holds_nothing(tmp_path: Path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid} on "), locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    assert (tmp_path / LOCK).read_text().startswith(f"process {holder.pid} ")
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} ")


def test_a_host_that_is_gone_is_waited_for(tmp_path: Path, monkeypatch, capsys):
    """Until the disk's server finds that it is; another that lives is refused after that."""
    monkeypatch.setattr("maxlm.train.lock.LEASE_SECONDS", 0.5)
    elsewhere = "process 7 on a-host-that-was\n"
    with locked(tmp_path):
        (tmp_path / LOCK).write_text(elsewhere)
        with pytest.raises(ConfigError, match="process 7 on a-host-that-was is training this run"), locked(tmp_path):
            pass
    assert f"{tmp_path} is held by process 7 on a-host-that-was: waiting" in capsys.readouterr().err
    monkeypatch.setattr("maxlm.train.lock.LEASE_SECONDS", 60)
    with ExitStack() as holder:
        holder.enter_context(locked(tmp_path))
        (tmp_path / LOCK).write_text(elsewhere)
        timer = Timer(0.3, holder.close)
        timer.start()
        with locked(tmp_path):
            assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} ")
        timer.join()


def test_a_disk_without_locks_holds_nothing_and_refuses_nothing(tmp_path: Path, monkeypatch):
    def unknown(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", unknown)
    with locked(tmp_path), locked(tmp_path):
        pass

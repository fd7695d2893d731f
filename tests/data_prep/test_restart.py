"""SIGKILL at any moment: a later run ends with the same bytes, redoes the unfinished alone, and leaves nothing."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from maxlm.data.shards import Shards

ROOT = Path(__file__).parents[2]
# Runs the command and kills itself before its n-th change to a file below argument 1, or lists the changes with n = 0.
DYING = """
import json, os, signal, sys

root, number = sys.argv.pop(1), int(sys.argv.pop(1))
seen = []

def hook(event, arguments):
    if event not in ("os.rename", "os.remove", "os.rmdir"):
        return
    name = str(arguments[0])
    if event != "os.rename" and arguments[1] != -1:
        name = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), name)
    if name.startswith(root) and not (event == "os.remove" and name.endswith(".partial")):
        seen.append([event, name])
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
from data_prep.cli import main
try:
    main()
finally:
    print(json.dumps(seen), file=sys.stderr)
"""


@pytest.fixture
def write(tmp_path, pipeline, every_stage):
    """A pipeline's file, and its output directory."""

    def call(name, **sections):
        config = pipeline(**every_stage, output=str(tmp_path / name), **sections)
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        return path, tmp_path / name

    return call


def start(*arguments, **options):
    """In a session of its own; a pipe, if any, is for one that has no workers, who would hold it open."""
    command = [sys.executable, *map(str, arguments)]
    options = {"stdout": subprocess.DEVNULL, "start_new_session": True} | options
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)


def wait_for_session(session):
    """Every process of the session has ended."""
    for _ in range(200):
        found = subprocess.run(["ps", "-s", str(session), "-o", "stat="], capture_output=True, text=True).stdout
        if all("Z" in line for line in found.splitlines()):
            return
        time.sleep(0.05)
    os.killpg(session, signal.SIGKILL)
    raise AssertionError("workers end with the process that was killed")


def records(work):
    return {path: path.stat().st_mtime_ns for path in work.glob("*/*/record.json")}


@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["parent", "group"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(write, prepare, contents, every_stage, kill):
    _, clean = write("clean")
    prepare(**every_stage, output=str(clean))
    total = len(records(clean / ".work" / "test"))
    path, out = write("killed", workers=2)
    work, generator = out / ".work" / "test", random.Random(kill is os.kill)
    kept: dict[Path, int] = {}
    for target in sorted(generator.sample(range(1, total), 4)):
        process = start("-m", "data_prep", "run", path)
        while process.poll() is None and len(records(work)) < target:
            time.sleep(0.002)
        time.sleep(generator.random() * 0.05)
        kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_for_session(process.pid)
        after = records(work)
        assert all(after.get(record, stamp) == stamp for record, stamp in kept.items()), "what was done is not redone"
        kept |= after
    assert start("-m", "data_prep", "run", path).wait() == 0
    assert contents(out) == contents(clean)
    assert not list(out.rglob("*.partial*")) and not list(out.rglob("*.former"))
    after = records(work)
    assert all(after.get(record, stamp) == stamp for record, stamp in kept.items())


@pytest.mark.slow
def test_a_run_killed_while_it_swaps_outputs_or_prunes_goes_on(tmp_path, write, prepare, contents, every_stage):
    """Before changes to directories that matter, of a run that replaces the outputs of a former configuration."""
    path, base = write("base", workers=1)
    prepare(**every_stage, output=str(base))
    shutil.copytree(base, tmp_path / "clean")
    arguments = (tmp_path / "clean", 0, "run", path, "seed=1", f"output={tmp_path / 'clean'}")
    changes = json.loads(start("-c", DYING, *arguments, stderr=subprocess.PIPE).communicate()[1])
    former, expected = contents(base), contents(tmp_path / "clean")
    assert former != expected
    renames = [n for n, (event, name) in enumerate(changes, 1) if event == "os.rename" and "/shuffle/" in name]
    swaps = [n for n, (_, name) in enumerate(changes, 1) if Path(name).name in ("web", ".web.partial")]
    removals = [n for n, (event, _) in enumerate(changes, 1) if event != "os.rename"]
    pruned = [n for n in removals if "/.work/" in changes[n - 1][1]]
    replaced = [n for n in removals if "/.web.former" in changes[n - 1][1]]
    moved = next(n for n in renames if not changes[n - 1][1].endswith(".partial"))
    assert len(swaps) == 2 and len(pruned) > 10 and len(replaced) > 5
    for number in [moved, *swaps, replaced[0], replaced[3], pruned[0], pruned[1], pruned[-2]]:
        out = tmp_path / f"out{number}"
        shutil.copytree(base, out)
        process = start("-c", DYING, out, number, "run", path, "seed=1", f"output={out}")
        assert process.wait() == -signal.SIGKILL
        found = contents(out)
        whole = [all(found.get(name) == data for name, data in state.items()) for state in (former, expected)]
        for name in ("web", "web-val"):
            if (out / name).exists():
                Shards(out / name).verify("checksums")
        assert number != moved or whole == [True, False], "the former output stays until the new one is complete"
        assert (out / "web").exists() or number == swaps[1], "there is no output between two renames alone"
        assert number < pruned[0] or whole[1]
        prepare(**every_stage, output=str(out), seed=1)
        assert contents(out) == expected, changes[number - 1]
        assert not list(out.rglob("*.partial*")) and not list(out.rglob("*.former"))
        keys = {stage.name: {key.name for key in stage.iterdir()} for stage in (out / ".work" / "test").glob("*/")}
        clean = tmp_path / "clean" / ".work" / "test"
        assert keys == {stage.name: {key.name for key in stage.iterdir()} for stage in clean.glob("*/")}

"""Ray: the bytes of the native runner, on a cluster of two nodes; errors, lost workers, and what is left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from data_prep.engine import Cluster, Task, advance
from data_prep.engine import ray as engine
from data_prep.manifest import Folder, writing
from maxlm.errors import ConfigError, DataError, MaxlmError, StartError

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
NODES = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def address():
    """A cluster of two nodes with a processor each, started elsewhere than the run."""
    command = [sys.executable, "-c", NODES]
    here = Path(__file__).parent
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": f"{here.parents[1]}:{here}"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd="/", env=environment, text=True, **pipes) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()


@pytest.fixture
def cluster(address, monkeypatch):
    """In this process, whose queries, those of other tests, stay where they are."""
    import daft

    monkeypatch.setenv("DAFT_RUNNER", "native")
    daft.get_or_create_runner()
    with Cluster(address, None) as workers:
        yield workers


@pytest.fixture
def file(tmp_path, pipeline, every_stage):
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(pipeline(**every_stage, workers=2).model_dump(mode="json")))
    return path


def double(folder, key, value):
    advance(10)
    return folder.commit(key, (), {"value": 2 * value, "process": os.getpid(), "node": _node()})


def _node():
    return ray.get_runtime_context().get_node_id()


def refuse(folder, key, value):
    raise DataError(f"no {value}")


def die_once(folder, key, value, marker):
    """The process is killed in the middle of the first attempt."""
    with writing(folder.file(key, "half")) as temporary:
        temporary.write_text("half")
        if not marker.exists():
            marker.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
    return folder.commit(key, ["half"], {"value": 2 * value})


def die(folder, key, value):
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(folder, key, value):
    time.sleep(0.2)
    return double(folder, key, value)


def steps(printed):
    """The lines that say what was made."""
    return [line for line in printed.splitlines() if " up to date" in line]


def test_every_output_is_the_same_as_without_ray(tmp_path, command, file, contents, address):
    native = command("run", file, f"output={tmp_path / 'native'}")
    # Relative paths, from a directory that the nodes did not start in.
    onray = command("run", file, "output=onray", "--runner", "ray", "--address", address)
    assert native.returncode == onray.returncode == 0, onray.stderr
    assert onray.stderr == "" and steps(onray.stdout) == steps(native.stdout) != []
    assert contents(tmp_path / "onray") == contents(tmp_path / "native")
    assert not list((tmp_path / "onray" / ".work" / "test").glob("shared-*"))


def test_a_task_whose_process_was_killed_is_done_again(tmp_path, cluster):
    folder = Folder(tmp_path / "stage")
    tasks = [*tasks_of(double, 3), Task("dies", die_once, (9, tmp_path / "marker"), 1)]
    records, made = cluster.run(folder, tasks, lambda done: None)
    assert [record.values["value"] for record in records] == [0, 2, 4, 18] and made == 4
    assert (tmp_path / "marker").exists() and folder.file("dies", "half").read_text() == "half"


def test_a_task_whose_process_dies_every_time_names_the_stage(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(engine, "RETRIES", 1)
    with pytest.raises(MaxlmError, match="stage: a worker process was killed.*fewer workers"):
        cluster.run(Folder(tmp_path / "stage"), tasks_of(die, 1), lambda done: None)


def test_a_task_that_ray_ends_for_its_memory_names_the_stage():
    with pytest.raises(MaxlmError, match="stage: a worker process was killed.*fewer workers"):
        raise engine._plain(ray.exceptions.OutOfMemoryError("2 workers were killed"), "stage")


def test_results_are_in_order_from_both_nodes_and_progress_is_told(tmp_path, cluster):
    seen = []
    records, made = cluster.run(Folder(tmp_path / "stage"), tasks_of(sleep, 12), seen.append)
    assert [record.values["value"] for record in records] == list(range(0, 24, 2)) and made == 12
    assert len({record.values["node"] for record in records}) == 2
    assert seen == sorted(seen) and 60 <= seen[-1] <= 120


def test_an_error_of_a_task_is_raised_as_it_is_and_finished_tasks_stay(tmp_path, cluster):
    folder = Folder(tmp_path / "stage")
    cluster.run(folder, tasks_of(double, 3), lambda done: None)
    with pytest.raises(DataError, match="^no 7$"):
        cluster.run(folder, [*tasks_of(double, 3), Task("a", refuse, (7,), 1)], lambda done: None)
    assert all(folder.find(f"key{i}") for i in range(3))


def test_tasks_end_with_the_run_that_started_them(tmp_path, address, monkeypatch):
    monkeypatch.setenv("DAFT_RUNNER", "native")
    beats = tmp_path / "beats"
    with pytest.raises(DataError, match="no 7"), Cluster(address, None) as workers:
        tasks = [Task("long", beat, (beats,), 2), Task("bad", refuse_later, (7, beats), 1)]
        workers.run(Folder(tmp_path / "stage"), tasks, lambda done: None)
    deadline, last = time.monotonic() + 20, -1
    while last != (last := beats.stat().st_size) and time.monotonic() < deadline:
        time.sleep(1)
    assert last > 0 and beats.stat().st_size == last


def beat(folder, key, path):
    while True:
        with open(path, "a") as file:
            file.write(".")
        time.sleep(0.05)


def refuse_later(folder, key, value, path):
    while not path.exists():
        time.sleep(0.05)
    refuse(folder, key, value)


def test_a_work_directory_that_a_node_does_not_see_is_named(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(engine, "see", blind)
    with pytest.raises(StartError, match=f"node .* does not see {tmp_path}.*work_dir"):
        cluster.run(Folder(tmp_path / "stage"), tasks_of(double, 1), lambda done: None)
    assert list(tmp_path.iterdir()) == []


def blind(marker):
    return engine_see(marker.with_name("other"))


engine_see = engine.see


def tasks_of(function, count):
    return [Task(f"key{i}", function, (i,), 10) for i in range(count)]


@pytest.mark.parametrize("text", ["nonsense", "host:", ":6379", "host:port"])
def test_an_address_without_host_or_port_is_refused(text):
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        Cluster(text, None)


def test_an_address_where_no_cluster_answers_is_named(tmp_path, monkeypatch):
    with pytest.raises(StartError, match="127.0.0.1:1: no Ray cluster.*refused"):
        Cluster("127.0.0.1:1", None)
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        cluster = Cluster(f"127.0.0.1:{server.getsockname()[1]}", None)
        with pytest.raises(StartError, match="no answer in 3 s"), cluster:
            cluster.run(Folder(tmp_path), tasks_of(double, 1), lambda done: None)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MaxlmError, match=r"pip install 'maxlm\[prep,ray\]'"):
        Cluster(None, 2)


@pytest.mark.parametrize("own, number, code", [(False, signal.SIGINT, 130), (True, signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_leaves_nothing(tmp_path, file, address, own, number, code):
    """Ctrl-C on a cluster, and SIGKILL of a run with a Ray of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep", "run", str(file), "--runner", "ray"]
        + ([] if own else ["--address", address]),
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "MAXLM_TEST_RUN": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not list((tmp_path / "out").glob(".work/test/language/*/record.json")):
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == ("interrupted; the same command goes on where it stopped\n" if code == 130 else "")
    deadline = time.monotonic() + 30
    while (left := marked(str(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def marked(value):
    """Processes of this machine that were started with the value in their environment.

    Ray's agents are left out: where they have just started, they try for 70 seconds to reach what was killed.
    """
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            name = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (directory / "environ").read_bytes()
            if f"MAXLM_TEST_RUN={value}".encode() in environment and "agent" not in name.lower():
                found.append(name)
        except OSError:
            continue
    return found

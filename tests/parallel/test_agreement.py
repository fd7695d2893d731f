"""How several processes are recognised, and that they act and fail as one."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest

from maxlm.errors import ConfigError, StartError
from maxlm.parallel import processes

HAND = {"MAXLM_COORDINATOR": "host0:8476", "MAXLM_NUM_PROCESSES": "4", "MAXLM_PROCESS_ID": "2"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}


def test_the_three_variables_say_everything_also_inside_another_launcher():
    launch = processes.detect(HAND | STEP | {"SLURM_STEP_NUM_TASKS": "8"})
    assert launch.arguments == {
        "coordinator_address": "host0:8476",
        "num_processes": 4,
        "process_id": 2,
        "cluster_detection_method": "deactivate",
    }
    assert processes.detect(HAND | {"MAXLM_NUM_PROCESSES": "1", "MAXLM_PROCESS_ID": "0"}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MAXLM_PROCESS_ID": ""}, "is set without MAXLM_PROCESS_ID"),
        ({"MAXLM_PROCESS_ID": "4"}, "MAXLM_PROCESS_ID: found 4; expected 0 to .* 3"),
        ({"MAXLM_NUM_PROCESSES": "four"}, "MAXLM_NUM_PROCESSES: found 'four'; expected a whole number"),
        ({"MAXLM_COORDINATOR": "host0"}, "MAXLM_COORDINATOR: found 'host0'; expected host:port"),
    ],
)
def test_wrong_variables_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        processes.detect(HAND | changes)


def test_a_slurm_step_of_several_tasks_is_recognised_and_a_shell_in_an_allocation_is_not():
    shell = STEP | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    batch_script = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert processes.detect(shell) is None and processes.detect(batch_script) is None
    step = STEP | {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}
    launch = processes.detect(step | {"SLURM_STEP_NUM_NODES": "2"})
    assert launch.arguments == {"cluster_detection_method": "slurm", "num_processes": 4, "process_id": 3}
    assert not launch.alone_on_host and processes.detect(step | {"SLURM_STEP_NUM_NODES": "4"}).alone_on_host


def test_open_mpi_is_recognised_and_a_version_that_tells_too_little_is_named():
    launch = processes.detect(MPI | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"} | STEP)
    assert launch.arguments == {"cluster_detection_method": "ompi"} and launch.alone_on_host
    with pytest.raises(ConfigError, match="MAXLM_COORDINATOR, MAXLM_NUM_PROCESSES, MAXLM_PROCESS_ID"):
        processes.detect(MPI)


def test_a_tpu_slice_of_several_hosts_is_recognised():
    assert processes.detect({"TPU_WORKER_HOSTNAMES": "a,b"}).arguments == {"cluster_detection_method": "gketpu"}
    assert processes.detect({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"})
    assert processes.detect({"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert processes.detect({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}) is None


def test_a_tpu_vm_asks_the_metadata_server(monkeypatch):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: True)
    one = {"worker-network-endpoints": "u:0:10.0.0.1", "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'"}
    assert processes._cloud_tpu({}, one.get) is None
    several = one | {"worker-network-endpoints": "u:0:10.0.0.1,u:1:10.0.0.2"}
    assert processes._cloud_tpu({}, several.get).arguments == {"cluster_detection_method": "gcetpu"}
    assert processes._cloud_tpu({}, (one | {"tpu-env": "MEGASCALE_NUM_SLICES: '2'"}).get)
    assert processes._cloud_tpu({}, {"worker-network-endpoints": "", "tpu-env": ""}.get) is None
    assert processes._cloud_tpu({"TPU_SKIP_MDS_QUERY": "1"}, several.get) is None


def test_a_coordinator_port_in_use_is_named():
    with socket.create_server(("", 0)) as server, pytest.raises(StartError, match="choose another"):
        processes._check_port(f"localhost:{server.getsockname()[1]}")


def run_together(program: str, count: int = 2, **variables: str) -> list[tuple[int, str]]:
    """Exit codes and outputs of one Python program in several processes, by their numbers."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    shared = {"XLA_FLAGS": "", "MAXLM_COORDINATOR": f"localhost:{port}", "MAXLM_NUM_PROCESSES": str(count)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)],
            env=os.environ | shared | {"MAXLM_PROCESS_ID": str(number)} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(count)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


JOIN = """
from maxlm.config import ProcessesConfig
from maxlm.errors import DataError, MaxlmError
from maxlm.parallel import processes
processes.join(ProcessesConfig(initialization_timeout_seconds={seconds}, heartbeat_timeout_seconds=5))
import jax
from maxlm.parallel.agreement import by_first, from_first, gather, one_fate, together
number = jax.process_index()
"""


def test_processes_act_and_fail_as_one():
    program = JOIN.format(seconds=60) + textwrap.dedent("""
        assert gather("x" * (3 * number)) == ["", "xxx"] and gather("") == ["", ""]
        assert from_first(number == 0) and not from_first(number == 1)
        assert by_first(lambda: number + 5) == (5 if number == 0 else None)
        with together():
            pass
        try:
            with together():
                if number == 1:
                    raise DataError("no shard")
        except DataError as error:
            assert str(error) == "process 1: no shard" and error.everywhere and not error.quiet, error
        else:
            raise AssertionError
        try:
            with one_fate():
                with together():
                    int("x" if number == 0 else "1")
        except MaxlmError as error:
            assert number == 1 and "process 0: ValueError: invalid literal" in str(error)
        except ValueError:
            assert number == 0
        try:
            with one_fate():
                if number == 1:
                    raise DataError("alone")
                gather("waits in vain")
        except MaxlmError as error:
            error.exit()
        """)
    (first, _), (second, output) = run_together(program)
    assert second == 3 and "error: process 1: alone" in output
    assert first not in (0, 3)


def test_processes_that_do_not_come_are_one_clear_line():
    ((code, output),) = run_together(JOIN.format(seconds=2), 1, MAXLM_NUM_PROCESSES="2")
    assert code == 1 and output.startswith("error: process 0 of 2, coordinator localhost:")
    assert len(output.splitlines()) == 1

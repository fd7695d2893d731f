"""How the processes of one run find each other: three variables given by hand, or a launcher that is recognised.

    MAXLM_COORDINATOR=host0:8476 MAXLM_NUM_PROCESSES=4 MAXLM_PROCESS_ID=2 maxlm train run.yaml

Every process runs the same command; process 0 listens at the coordinator's address, and the others come there.
Nothing is started where nothing says that there are several processes: a shell in a SLURM allocation, or a TPU VM
that is a whole slice, is a single process and neither waits nor opens a port.
"""

import importlib.util
import os
import re
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from maxlm.config import ProcessesConfig
from maxlm.errors import ConfigError, StartError

VARIABLES = COORDINATOR, NUM_PROCESSES, PROCESS_ID = "MAXLM_COORDINATOR", "MAXLM_NUM_PROCESSES", "MAXLM_PROCESS_ID"

# After a failed connection jax aborts the process with a stack trace; ours is the earlier and the clearer end.
MARGIN_SECONDS = 60
METADATA = "http://{}/computeMetadata/v1/instance/attributes/{}"


class Launch(NamedTuple):
    """What says that there are several processes, and what `jax.distributed.initialize` needs to be told."""

    how: str
    arguments: dict[str, Any]
    alone_on_host: bool = False  # the only process of its host, which drives all of its devices


def join(config: ProcessesConfig) -> None:
    """Come together with the other processes, if there are any and this has not been done; before any use of devices.

    Raises `StartError`, or ends the process with its message where jax would abort it.
    """
    if jax.distributed.is_initialized():
        return
    launch = detect(os.environ)
    if launch is None:
        return
    if launch.arguments.get("process_id") == 0 and COORDINATOR in os.environ:
        _check_port(os.environ[COORDINATOR])
    seconds = config.initialization_timeout_seconds
    timer = threading.Timer(seconds, _give_up, (launch, seconds))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **launch.arguments,
            initialization_timeout=seconds + MARGIN_SECONDS,
            heartbeat_timeout_seconds=config.heartbeat_timeout_seconds,
            # A process that ended in an error of its own must not wait longer for the others than they for it.
            shutdown_timeout_seconds=config.heartbeat_timeout_seconds,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StartError(f"{launch.how}: the processes could not be joined ({reason})") from None
    finally:
        timer.cancel()
    if launch.alone_on_host and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        # With SLURM and Open MPI jax gives a process the one GPU of its local number, also where it is the only one.
        jax.config.update("jax_cuda_visible_devices", "all")


def detect(environ: Mapping[str, str]) -> Launch | None:
    """The launch that the environment describes, None for a single process. Open MPI comes before SLURM, whose
    variables its processes inherit."""
    if any(environ.get(name) for name in VARIABLES):
        return _by_hand(environ)
    return _open_mpi(environ) or _slurm(environ) or _cloud_tpu(environ)


def _by_hand(environ: Mapping[str, str]) -> Launch | None:
    missing = [name for name in VARIABLES if not environ.get(name)]
    if missing:
        found = ", ".join(name for name in VARIABLES if name not in missing)
        raise ConfigError(
            f"{found} is set without {', '.join(missing)}; several processes need all three of "
            f"{', '.join(VARIABLES)}, a single process none"
        )
    coordinator = environ[COORDINATOR]
    if not re.fullmatch(r"\S+:\d+", coordinator):
        raise ConfigError(f"{COORDINATOR}: found '{coordinator}'; expected host:port of process 0, as in host0:8476")
    count, number = _integer(environ, NUM_PROCESSES), _integer(environ, PROCESS_ID)
    if not 0 <= number < count:
        raise ConfigError(f"{PROCESS_ID}: found {number}; expected 0 to {NUM_PROCESSES} - 1, which is {count - 1}")
    if count == 1:
        return None
    how = f"process {number} of {count}, coordinator {coordinator}"
    arguments = {"coordinator_address": coordinator, "num_processes": count, "process_id": number}
    # Inside another launcher's environment this is still the whole truth.
    return Launch(how, arguments | {"cluster_detection_method": "deactivate"})


def _open_mpi(environ: Mapping[str, str]) -> Launch | None:
    count = int(environ.get("OMPI_COMM_WORLD_SIZE", 1))
    if count == 1:
        return None
    if "OMPI_MCA_orte_hnp_uri" not in environ:
        raise ConfigError(
            f"Open MPI 5 started {count} processes without telling them where the first one is; set "
            f"{', '.join(VARIABLES)} in each, as tools/launch/README.md shows"
        )
    alone = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    how = f"Open MPI, process {environ.get('OMPI_COMM_WORLD_RANK')} of {count}"
    return Launch(how, {"cluster_detection_method": "ompi"}, alone)


def _slurm(environ: Mapping[str, str]) -> Launch | None:
    # Not SLURM_NTASKS, which in an interactive shell is the size of the allocation around its single task.
    count = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if count == 1:
        return None
    number = _integer(environ, "SLURM_PROCID")
    how = f"SLURM, process {number} of {count} on {environ.get('SLURM_STEP_NODELIST')}"
    arguments = {"cluster_detection_method": "slurm", "num_processes": count, "process_id": number}
    return Launch(how, arguments, environ.get("SLURM_STEP_NUM_NODES") == str(count))


def _cloud_tpu(environ: Mapping[str, str], metadata: Callable[[str], str] | None = None) -> Launch | None:
    """Several hosts of a TPU slice or several slices: by variables on GKE, by the metadata server on TPU VMs."""
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms:
        return None
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    method, slices = "gketpu", environ.get("MEGASCALE_NUM_SLICES")
    # jax sets TPU_SKIP_MDS_QUERY when it is imported where there is no TPU.
    if not hosts and "TPU_SKIP_MDS_QUERY" not in environ and importlib.util.find_spec("libtpu"):
        metadata = metadata or (lambda key: _metadata(environ.get("GCE_METADATA_IP", "metadata.google.internal"), key))
        method, hosts = "gcetpu", metadata("worker-network-endpoints")
        found = re.search(r"MEGASCALE_NUM_SLICES: *'?(\d+)", metadata("tpu-env"))
        slices = slices or (found and found[1])
    count = len(hosts.split(",")) * int(slices or 1) if hosts else 1
    return Launch(f"Cloud TPU, {count} processes", {"cluster_detection_method": method}) if count > 1 else None


def _check_port(coordinator: str) -> None:
    """Process 0 listens there; jax ends in a segmentation fault where something else does."""
    port = int(coordinator.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except (OSError, OverflowError) as error:
        raise StartError(
            f"{COORDINATOR}: port {port} cannot be opened by process 0 ({error}); choose another"
        ) from None


def _metadata(server: str, key: str) -> str:
    """An attribute of this virtual machine; empty where there is none, or no such server."""
    request = urllib.request.Request(METADATA.format(server, key), headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.read().decode()
    except OSError:
        return ""


def _integer(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not text.isdecimal():
        raise ConfigError(f"{name}: found '{text}'; expected a whole number")
    return int(text)


def _give_up(launch: Launch, seconds: int) -> None:
    error = StartError(
        f"{launch.how}: not all processes have come within {seconds} s "
        "(processes.initialization_timeout_seconds); check that all of them were started with one coordinator "
        "address and different numbers, and that process 0 can be reached there through the network and its firewall"
    )
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)  # the main thread is in a call that no exception can end

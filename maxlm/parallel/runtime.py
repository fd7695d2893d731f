"""Settings of the JAX process, made once by a command before it touches a device."""

import logging
import os
from pathlib import Path

import jax

from maxlm.config import ProcessesConfig
from maxlm.parallel import processes
from maxlm.parallel.hardware import GPU_MEMORY_FRACTION

# Where there is no TPU, libtpu asks these of nobody and prints half a page of warnings (libtpu 0.0.42). The type of
# accelerator may be whichever.
NO_TPU = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}


def setup(joined: ProcessesConfig | None = None) -> None:
    """Turn on the persistent compilation cache: `JAX_COMPILATION_CACHE_DIR`, else the user's cache directory; with
    `joined`, come together with the other processes of the command first."""
    # Read when the GPU is first touched.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_FRACTION))
    if joined:
        processes.join(joined)
    if os.environ.get("TPU_SKIP_MDS_QUERY") == "1":  # as jax sets it when it is imported where there is no TPU
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)
    # Orbax logs with a traceback what its threads also raise; people are told once, by the error.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if not jax.config.jax_compilation_cache_dir:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "maxlm" / "jax"))
    # The many small programs of a start together cost seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        # A cached program with collectives between virtual CPU devices stops for good in about every third run
        # (jax 0.10.2, 8 devices on 2 cores); a freshly compiled one does not.
        jax.config.update("jax_enable_compilation_cache", False)

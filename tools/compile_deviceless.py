"""Compile the train step of a configuration for TPUs that are not there, and say what it needs.

    pip install 'maxlm[plan]'
    python tools/compile_deviceless.py configs/runs/llama3-8b-fineweb.yaml --topology v5p:4x4x4

It runs on a machine with a CPU alone; the data need not exist. GiB per chip: the compiler's own peak, and argument +
output + temporary - alias, which counts fragmentation and so lies higher.
"""

import argparse
import json
import os
import time

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from maxlm.config import load  # noqa: E402
from maxlm.model.counts import parameter_count  # noqa: E402
from maxlm.parallel.mesh import build_mesh, check_batch  # noqa: E402
from maxlm.train.state import abstract_batch, abstract_state, blueprint, replicated_scalar  # noqa: E402
from maxlm.train.step import compile_step  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of a run")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--topology", default="v5p:4x4x4", help="libtpu's name of the slice (default v5p:4x4x4)")
    options = parser.parse_args()

    config = load(options.config, options.overrides)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices
    mesh = build_mesh(config.mesh, devices)
    check_batch(config, mesh)
    plan = blueprint(config, mesh, len(config.data.sources))
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        traced = compile_step(plan).trace(
            abstract_state(plan), abstract_batch(plan), replicated_scalar(plan, np.float32)
        )
        compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    memory = compiled.memory_analysis()
    gib = {
        "argument": memory.argument_size_in_bytes,
        "output": memory.output_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "alias": memory.alias_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
    }
    gib["sum"] = gib["argument"] + gib["output"] + gib["temporary"] - gib["alias"]
    result = {"config": options.config, "topology": options.topology, "chips": len(devices), "mesh": dict(mesh.shape)}
    result |= {"parameters": parameter_count(config.model), "seconds": round(time.perf_counter() - began, 1)}
    print(json.dumps(result | {"gib_per_chip": {name: round(size / 2**30, 2) for name, size in gib.items()}}))


if __name__ == "__main__":
    main()

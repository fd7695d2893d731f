"""Compile the train step of a configuration for TPUs that are not there, and say what it needs.

    pip install 'maxlm[plan]'
    python tools/compile_deviceless.py configs/runs/llama3-8b-v5p-128.yaml --topology v5p:4x4x4 --traffic

It runs on a machine with a CPU alone; the data need not exist. The topology names one slice, of which mesh.slices are
joined. GiB per chip: the compiler's own peak, and argument + output + temporary - alias, which counts fragmentation and
so lies higher. With `--traffic`, what each mesh axis moves: GiB that one chip sends in a step
(maxlm/parallel/traffic.py says how they are counted). The last line is JSON.
"""

import argparse
import json
import math
import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from maxlm.config import load  # noqa: E402
from maxlm.errors import ConfigError  # noqa: E402
from maxlm.model.counts import parameter_count  # noqa: E402
from maxlm.parallel.traffic import Transfer, table, transfers  # noqa: E402
from maxlm.plan.compile import compile_for  # noqa: E402

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of a run")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--topology", default="v5p:4x4x4", help="libtpu's name of one slice (default v5p:4x4x4)")
    parser.add_argument("--traffic", action="store_true", help="print what each mesh axis moves")
    parser.add_argument("--largest", type=int, default=20, help="with --traffic: single transfers listed (default 20)")
    options = parser.parse_args()

    try:
        config = load(options.config, options.overrides)
        began = time.perf_counter()
        step = compile_for(config, options.topology)
    except ConfigError as error:
        error.exit()
    seconds = round(time.perf_counter() - began, 1)
    result = {"config": options.config, "topology": options.topology, "chips": step.mesh.size}
    result |= {"mesh": dict(step.mesh.shape), "parameters": parameter_count(config.model), "seconds": seconds}
    result["gib_per_chip"] = {name: round(size / GIB, 2) for name, size in step.memory().items()}
    if options.traffic:
        moved = transfers(step.executable.as_text(), step.mesh)
        console = Console(width=None if Console().is_terminal else 200)
        console.print(summary(moved))
        console.print(largest(moved, options.largest))
        result["gib_sent_per_chip"] = {f"{row.axis} {row.opcode}": _gib(row.bytes) for row in table(moved)}
    print(json.dumps(result))


def summary(moved: list[Transfer]) -> Table:
    """By axis and opcode; `?` where a loop's trip count does not follow from constants."""
    out = Table("axis", "opcode", "GiB per step", "count", "the largest", title="sent by one chip")
    for row in table(moved):
        out.add_row(row.axis, row.opcode, _text(row.bytes / GIB, 3), _text(row.count), _brief(row.largest.shape))
    return out


def largest(moved: list[Transfer], number: int) -> Table:
    out = Table("axis", "opcode", "GiB per step", "count", "loops", "shape", "where", title="the largest transfers")
    known = sorted(moved, key=lambda transfer: math.inf if math.isnan(transfer.bytes) else transfer.bytes, reverse=True)
    for transfer in known[:number]:
        loops = " x ".join(_text(loop.trips) for loop in transfer.loops)
        amount = _text(transfer.bytes / GIB, 3), _text(transfer.count)
        out.add_row(transfer.axis, transfer.opcode, *amount, loops, _brief(transfer.shape), transfer.where)
    return out


def _text(number: float, digits: int = 0) -> str:
    return "?" if math.isnan(number) else f"{number:.{digits}f}"


def _gib(size: float) -> float | None:
    return None if math.isnan(size) else round(size / GIB, 4)


def _brief(shape: str) -> str:
    return shape if len(shape) < 60 else f"{shape[:57]}..."


if __name__ == "__main__":
    main()

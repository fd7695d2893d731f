"""Memory and speed of `maxlm average`.

    python tools/bench_average.py FOLDER [--billions 1.3] [--checkpoints 3]

Makes, in FOLDER, a run directory with checkpoints of random float32 parameters in chunks as training stores them, and
averages them with the command in a process of its own; before that, the same of a tiny model. Printed per model: the
largest resident memory (VmHWM), the tiny model's beside it, and the MB/s of parameters that are read.
"""

import argparse
import os
import shutil
from pathlib import Path

import numpy as np
from bench_convert import TINY, drop, model, run

from maxlm.config import Config, ModelConfig, validate
from maxlm.convert.arrays import Array, Slices, write_checkpoint
from maxlm.convert.folder import parameters
from maxlm.convert.importing import nested
from maxlm.parallel import runtime
from maxlm.saved import DIRECTORY, TOKENIZER


def make_run(directory: Path, config: ModelConfig, checkpoints: int) -> int:
    """Checkpoints of steps 1, 2, ...; returns the bytes of the parameters of one."""
    (directory / TOKENIZER).mkdir(parents=True)
    float32 = np.dtype(np.float32)
    arrays = {path: Array(leaf.shape, float32, int(path[0] == "blocks")) for path, leaf in parameters(config).items()}
    values = {
        "name": directory.name,
        "model": config.model_dump(mode="json"),
        "data": {"seq_len": 16, "sources": {"a": {"path": "a"}}, "mixture": [{"tokens": 160, "weights": {"a": 1}}]},
        "train": {"batch_tokens": 16},
    }
    described = validate(values, Config, "bench").model_dump(mode="json")
    for step in range(1, checkpoints + 1):
        random = np.random.default_rng(step)

        def fill(slices: Slices, random: np.random.Generator = random) -> None:
            for path in arrays:
                for region in slices.regions(path):
                    shape = [part.stop - part.start for part in region]
                    slices.write_region(path, region, random.standard_normal(shape, np.float32))

        entry = {"step": step, "tokens": 0, "config": described, "tokenizer": None}
        write_checkpoint(directory / DIRECTORY / str(step), nested(arrays), entry, fill)
    return sum(array.nbytes for array in arrays.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--billions", type=float, default=1.3)
    parser.add_argument("--checkpoints", type=int, default=3)
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    runtime.setup()
    for name, config in {"tiny": ModelConfig(**TINY, mlp_dim=128), "llama": model(options.billions)}.items():
        directory, out = options.folder / f"{name}-run", options.folder / f"{name}-mean"
        nbytes = make_run(directory, config, options.checkpoints)
        drop(directory)
        seconds, memory = run(["average", str(directory), str(out), "--last", str(options.checkpoints)])
        read = nbytes * options.checkpoints / 1e6
        print(f"{name}: {memory:.0f} MiB; {read:,.0f} MB read in {seconds:.1f} s, {read / seconds:.0f} MB/s")
        for path in (directory, out):
            shutil.rmtree(path)


if __name__ == "__main__":
    main()

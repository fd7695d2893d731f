"""Memory and speed of `maxlm import` and `maxlm export`, beside the disk's own.

    python tools/bench_convert.py FOLDER [--billions 1.3] [--experts]

Makes, in FOLDER, a Llama of random parameters as Hugging Face stores it (bfloat16, several files), imports and exports
it with the commands in processes of their own, and compares the tensors bit by bit; then the same by way of float32, in
chunks as training stores them (tests hold that they are alike). With --experts the model is a mixture of many small
experts. Printed per command: the largest resident memory (VmHWM), less that of the same command on a tiny model, over
the largest tensor; and MB/s of tensors. The disk's own speed is that of 1 GiB written with fsync and read back after
its pages were dropped.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from maxlm.config import ModelConfig
from maxlm.convert.families import links, write_config
from maxlm.convert.tensors import Tensor, read_tensors

TINY = {"vocab_size": 512, "num_layers": 2, "embed_dim": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
# 1.34 billion parameters, of which the embedding and the output matrix have 66 million each.
LLAMA = {"vocab_size": 32256, "num_layers": 24, "embed_dim": 2048, "num_heads": 16, "num_kv_heads": 16, "head_dim": 128}
EXPERTS = {"vocab_size": 32256, "num_layers": 4, "embed_dim": 512, "num_heads": 8, "num_kv_heads": 8, "head_dim": 64}

# The command, then the largest memory that it had, of pages that are nobody else's and of files.
CHILD = """
import sys
from maxlm import cli
sys.argv = ["maxlm", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as end:
    code = end.code or 0
status = open("/proc/self/status").read()
print("VmHWM", next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
sys.exit(code)
"""


def model(billions: float) -> ModelConfig:
    config = ModelConfig(**LLAMA, mlp_dim=5504, rope={"theta": 10000.0}, context_length=2048)
    return config.model_copy(update={"num_layers": max(1, round(24 * billions / 1.3))})


def make_folder(directory: Path, config: ModelConfig, most: int) -> None:
    """Random bfloat16 numbers in files of about `most` bytes, without ever having a file in memory."""
    directory.mkdir(parents=True)
    family, values = write_config(config)
    (directory / "config.json").write_text(json.dumps(values | {"eos_token_id": 2, "bos_token_id": 1}))
    groups, size = [[]], 0
    for link in links(family, config):
        nbytes = 2 * int(np.prod(link.shape))
        if groups[-1] and size + nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append((link, nbytes))
        size += nbytes
    random, placed = np.random.default_rng(0), {}
    for number, group in enumerate(groups):
        name = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        begin, header = 0, {}
        for link, nbytes in group:
            header[link.theirs] = {"dtype": "BF16", "shape": link.shape, "data_offsets": [begin, begin + nbytes]}
            placed[link.theirs], begin = name, begin + nbytes
        text = json.dumps(header).encode()
        with open(directory / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for link, _ in group:
                values = random.standard_normal(link.shape, np.float32) * 0.02
                file.write(values.astype(ml_dtypes.bfloat16).view(np.uint16).data)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def run(words: list[str]) -> tuple[float, float]:
    """Seconds and MiB of a command."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"maxlm {' '.join(words)}: {done.stderr}")
    print("   ", done.stdout.splitlines()[0])
    return time.monotonic() - began, int(done.stdout.split("VmHWM")[1].split()[0]) / 1024


def drop(path: Path) -> None:
    """Forget the pages of files, so that they are read from the disk."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_speed(folder: Path) -> tuple[float, float]:
    """MB/s of writing with fsync and of reading 1 GiB."""
    data, path = np.random.default_rng(0).bytes(2**26), folder / "disk"
    began = time.monotonic()
    with open(path, "wb", buffering=0) as file:
        for _ in range(16):
            file.write(data)
        os.fsync(file.fileno())
    written = time.monotonic() - began
    drop(path)
    began = time.monotonic()
    with open(path, "rb", buffering=0) as file:
        while file.read(2**26):
            pass
    read = time.monotonic() - began
    path.unlink()
    return 2**30 / written / 1e6, 2**30 / read / 1e6


def equal(one: Path, other: Path) -> bool:
    def parts(tensor: Tensor):
        values = tensor.map().reshape(-1).view(np.uint16)
        return (values[first : first + 2**24] for first in range(0, len(values), 2**24))

    left, right = read_tensors(one), read_tensors(other)
    return left.keys() == right.keys() and all(
        left[name].shape == right[name].shape
        and all(np.array_equal(a, b) for a, b in zip(parts(left[name]), parts(right[name]), strict=True))
        for name in left
    )


def measure(folder: Path, name: str, config: ModelConfig, tiny: dict[str, float], wide: bool = False) -> None:
    source, middle, out = folder / f"{name}-hf", folder / f"{name}-imported", folder / f"{name}-exported"
    make_folder(source, config, 10**9)
    tensors = read_tensors(source)
    largest, total = max(t.nbytes for t in tensors.values()) / 2**20, sum(t.nbytes for t in tensors.values()) / 1e6
    print(f"{name}: {total / 2e3:.3f} billion parameters, {len(tensors)} tensors, the largest {largest:.1f} MiB")

    def command(label: str, words: list[str], read: Path) -> None:
        drop(read)
        seconds, memory = run(words)
        constant = tiny.setdefault(words[0], memory)
        over = memory - constant
        share = f"{over:.0f} MiB over {constant:.0f}, {over / largest:.2f} x the largest tensor"
        print(f"  {label}: {memory:.0f} MiB ({share}); {seconds:.1f} s, {total / seconds:.0f} MB/s")

    command("import", ["import", str(source), str(middle)], source)
    stored = sum(file.stat().st_size for file in middle.rglob("*") if file.is_file()) / 1e6
    command("export", ["export", str(middle), str(out)], middle)
    print(f"  imported {stored:.0f} MB on disk; exported {'equal' if equal(source, out) else 'DIFFERENT'} to the bit")
    shutil.rmtree(out)
    if wide:
        shutil.rmtree(middle)
        command("import as float32", ["import", str(source), str(middle), "--dtype", "float32"], source)
        words = ["export", str(middle), str(out), "--dtype", "bfloat16"]
        command("export of float32 as bfloat16", words, middle)
        print(f"  exported {'equal' if equal(source, out) else 'DIFFERENT'} to the bit")
    for path in (source, middle, out):
        shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--billions", type=float, default=1.3)
    parser.add_argument("--experts", action="store_true", help="128 experts in each of 4 layers, and no other model")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ["JAX_PLATFORMS"] = "cpu"
    print("disk: {:.0f} MB/s written with fsync, {:.0f} MB/s read".format(*disk_speed(options.folder)))
    tiny: dict[str, float] = {}
    measure(options.folder, "tiny", ModelConfig(**TINY, mlp_dim=128), tiny)
    if options.experts:
        moe = {"num_experts": 128, "experts_per_token": 8, "mlp_dim": 256, "aux_weight": 0.001}
        measure(options.folder, "experts", ModelConfig(**EXPERTS, mlp_dim=256, moe=moe, qk_norm=True), tiny)
    else:
        measure(options.folder, "llama", model(options.billions), tiny, wide=True)
    print("disk: {:.0f} MB/s written with fsync, {:.0f} MB/s read".format(*disk_speed(options.folder)))


if __name__ == "__main__":
    main()

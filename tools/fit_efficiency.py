"""Predicted speed beside published runs, and the efficiency of each family of chips that fits them best.

    python tools/fit_efficiency.py

Every run is described as a configuration of ours; what ours cannot say is in its note. One efficiency per family of
chips is fitted to the logarithm of the step time over the family's runs. A run's error is that of a prediction with
the efficiency fitted to the family's other runs. Nothing is compiled; no device is touched.
"""

import argparse
import functools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

os.environ["JAX_PLATFORMS"] = "cpu"

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from maxlm.config import Config, validate  # noqa: E402
from maxlm.model.counts import flops_per_token, matmul_parameter_count, parameter_count  # noqa: E402
from maxlm.parallel.hardware import Chip, System, system  # noqa: E402
from maxlm.plan.roofline import EFFICIENCY, layout_for, predict  # noqa: E402
from maxlm.plan.work import Work, estimated_work  # noqa: E402


def dense(layers: int, embed: int, heads: int, kv: int, mlp: int, vocab: int, head_dim: int = 128, **others) -> dict:
    sizes = {"num_layers": layers, "embed_dim": embed, "num_heads": heads, "num_kv_heads": kv, "mlp_dim": mlp}
    return sizes | {"vocab_size": vocab, "head_dim": head_dim} | others


MODELS = {
    "llama2-7b": dense(32, 4096, 32, 32, 11008, 32000),
    "llama2-70b": dense(80, 8192, 64, 8, 28672, 32000),
    "llama3-8b": dense(32, 4096, 32, 8, 14336, 128256),
    "llama3-70b": dense(80, 8192, 64, 8, 28672, 128256),
    "llama3-405b": dense(126, 16384, 128, 8, 53248, 128256),
    "mistral-7b": dense(32, 4096, 32, 8, 14336, 32000),
    "mixtral-8x7b": dense(
        32, 4096, 32, 8, 14336, 32000, moe={"num_experts": 8, "experts_per_token": 2, "mlp_dim": 14336}
    ),
    # MaxText's decoder of 1B, its widths doubled in turn (`global_parameter_scale`).
    "maxtext-16b": dense(32, 4096, 64, 64, 28672, 32000),
    "maxtext-32b": dense(32, 8192, 64, 64, 28672, 32000),
    "maxtext-64b": dense(64, 8192, 64, 64, 28672, 32000),
    "maxtext-128b": dense(64, 8192, 128, 128, 57344, 32000),
    # MLPs without a gate, of 24576 and 49152: their two matrices as our three.
    "maxtext-22b": dense(48, 6144, 24, 24, 16384, 32000, head_dim=256),
    "maxtext-52b": dense(32, 12288, 32, 32, 32768, 32000, head_dim=256),
    "olmo2-1b": dense(16, 2048, 16, 16, 8192, 100352),
    "olmo2-7b": dense(32, 4096, 32, 32, 11008, 100352),
    "olmo2-13b": dense(40, 5120, 40, 40, 13824, 100352),
    # Without a gate, 4 x wider, as our three matrices; the second has windows of about 1024 tokens.
    "nanochat-d24": dense(24, 1536, 12, 12, 4096, 32768),
    "modded-124m": dense(12, 768, 6, 6, 2048, 50304, window=1024),
}
# Of products saved, by what the recipes say; None of ours saves a layer's input on the host, which costs no FLOPs.
QKV = ("query", "key", "value")
MINIMAL = (*QKV, "attention", "attention_out", "mlp_gate", "mlp_up")


@dataclass(frozen=True)
class Run:
    """A published run; exactly one of `tokens` and `tflops` is given."""

    source: str
    hardware: str  # one slice
    model: str
    seq_len: int
    sequences: float  # per device and microbatch
    remat: str | Sequence[str]
    mesh: dict[str, int] = field(default_factory=dict)  # besides fsdp, which takes what is left
    tokens: float | None = None  # per second and chip
    tflops: float | None = None  # per second and chip, attention counted without its mask
    accumulate: int = 1
    note: str = ""

    @functools.cached_property
    def config(self) -> Config:
        slices = self.mesh.get("slices", 1)
        found = system(self.hardware)
        devices = found.num_devices * (slices if found.chip.platform == "tpu" else 1)
        batch = round(self.sequences * devices * self.accumulate) * self.seq_len
        return run_config(
            MODELS[self.model], self.seq_len, batch, self.mesh, self.remat, 1.0e12, accumulate=self.accumulate
        )

    @functools.cached_property
    def work(self) -> Work:
        return estimated_work(layout_for(self.config, system(self.hardware)))

    @functools.cached_property
    def published(self) -> float:
        """Tokens per second and chip; of TFLOP/s by the formula that the source divides by."""
        if self.tokens is not None:
            return self.tokens
        config = self.config
        keys = 12 * config.model.num_layers * config.model.num_heads * config.model.head_dim * self.seq_len
        return self.tflops * 1e12 / (6 * matmul_parameter_count(config.model) + keys)

    def predicted(self, efficiency: float) -> float:
        return predict(self.config, system(self.hardware), self.work, efficiency).tokens_per_second_per_chip


def run_config(
    model: dict, seq_len: int, batch: int, mesh: dict, remat: str | Sequence[str], total: float, accumulate: int = 1
) -> Config:
    values = {
        "name": "published",
        "model": model,
        "data": {
            "seq_len": seq_len,
            "mask_documents": False,
            "sources": {"web": {"path": "web"}},
            "mixture": [{"tokens": max(int(total), seq_len), "weights": {"web": 1}}],
        },
        "train": {"batch_tokens": batch, "accumulate": accumulate},
        "mesh": {"data": 1, "fsdp": -1} | mesh,
        "remat": {"policy": remat},
        "logging": {"every_steps": 1},
    }
    return validate(values, Config, "published")


MAXTEXT, RECIPES = "MaxText README", "tpu-recipes"
TITAN, OLMO = "torchtitan, December 2024", "OLMo-core README"
GPUS = "number of GPUs assumed"
RUNS = [
    Run(MAXTEXT, "v4-128", "maxtext-22b", 2048, 13, "full", tflops=156),
    Run(MAXTEXT, "v4:4x4x12", "maxtext-52b", 2048, 7, "full", tflops=154, note="shape assumed"),
    Run(MAXTEXT, "v5e-256", "maxtext-16b", 2048, 6, "full", tflops=120),
    Run(MAXTEXT, "v5e-256", "maxtext-32b", 2048, 4, "full", tflops=132),
    Run(MAXTEXT, "v5e-256", "maxtext-64b", 2048, 2, "full", tflops=118),
    Run(MAXTEXT, "v5e-256", "maxtext-128b", 2048, 1, MINIMAL, {"tensor": 16}, tflops=110, note="saved on the host"),
    Run(MAXTEXT, "v5e-256", "maxtext-32b", 2048, 4, "full", {"data": 2, "slices": 2}, tflops=128),
    Run(MAXTEXT, "v5p-128", "maxtext-32b", 2048, 7, MINIMAL, {"tensor": 4}, tflops=328),
    Run(MAXTEXT, "v5p-128", "maxtext-64b", 2048, 3, MINIMAL, {"tensor": 4}, tflops=323),
    Run(MAXTEXT, "v5p-256", "maxtext-128b", 2048, 1, MINIMAL, {"tensor": 8}, tflops=315),
    Run(MAXTEXT, "v5p-512", "llama2-70b", 4096, 4, (*QKV, "attention_out"), tokens=692),
    Run(RECIPES, "v6e-256", "llama3-8b", 8192, 4, (*QKV, "attention_out"), tokens=7207),
    Run(RECIPES, "v6e-8", "llama3-8b", 8192, 3, (*QKV, "attention_out"), tokens=7139),
    Run(RECIPES, "v6e-256", "llama3-70b", 8192, 5, QKV, tokens=960),
    Run(RECIPES, "v6e-64", "llama3-70b", 8192, 2, QKV, tokens=877),
    Run(RECIPES, "v6e-256", "llama2-70b", 4096, 3, QKV, tokens=905),
    Run(RECIPES, "v6e-8", "mistral-7b", 8192, 6, (*QKV, "attention_out"), tokens=7777),
    Run(
        RECIPES,
        "v6e-256",
        "mixtral-8x7b",
        4096,
        12,
        (*QKV, "attention_out"),
        tokens=3645,
        note="experts of fixed capacity 1.25, computed by einsum",
    ),
    Run(RECIPES, "7x-128", "llama3-70b", 8192, 2, (*QKV, "attention"), tokens=2687),
    Run(RECIPES, "7x-512", "llama3-70b", 8192, 2, (*QKV, "attention"), tokens=2671),
    Run(RECIPES, "7x-512", "llama3-405b", 8192, 3, ("key", "value"), tokens=500),
    Run(TITAN, "h100x8", "llama3-8b", 8192, 2, "dots", tokens=5762, note="eager; 500 W, HBM 2.4 TB/s"),
    Run(TITAN, "h100x8", "llama3-8b", 8192, 2, "dots", tokens=6667, note="500 W, HBM 2.4 TB/s"),
    Run(TITAN, "h100x128", "llama3-8b", 8192, 2, "dots", tokens=6514, note="500 W, HBM 2.4 TB/s"),
    Run(MAXTEXT, "h100x8", "llama2-7b", 4096, 4, MINIMAL, tflops=492),
    Run(MAXTEXT, "h100x128", "llama2-7b", 4096, 4, MINIMAL, {"data": 16}, tflops=375),
    Run(OLMO, "h100x64", "olmo2-1b", 4096, 4, "none", tokens=45500, accumulate=4, note=GPUS),
    Run(OLMO, "h100x64", "olmo2-7b", 4096, 2, "none", tokens=9850, accumulate=8, note=GPUS),
    Run(OLMO, "h100x64", "olmo2-13b", 4096, 1, "none", tokens=4500, accumulate=32, note=GPUS),
    Run("nanochat", "h100x8", "nanochat-d24", 2048, 16, "none", {"data": 8}, tokens=100000),
    Run("modded-nanogpt", "h100x8", "modded-124m", 65536, 1, "none", {"data": 8}, tokens=462000, note="head in float8"),
]


def family(run: Run) -> str:
    return system(run.hardware).chip.name


def fit(runs: Sequence[Run]) -> float:
    """The efficiency with the least mean square of the logarithm of predicted over published speed."""

    def loss(efficiency: float) -> float:
        return sum(math.log(run.predicted(efficiency) / run.published) ** 2 for run in runs)

    # Golden sections: the loss has one minimum, as every speed grows with the efficiency.
    low, high, ratio = 0.1, 1.2, (math.sqrt(5) - 1) / 2
    while high - low > 1e-3:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return (low + high) / 2


def results(runs: Sequence[Run]) -> list[dict]:
    """A row per run, predicted with the efficiency of the family's other runs."""
    rows = []
    for run in runs:
        others = [other for other in runs if family(other) == family(run) and other is not run]
        efficiency = fit(others)
        predicted = run.predicted(efficiency)
        error = run.published / predicted - 1  # of the step time, which is too long where this is positive
        rows.append({"run": run, "efficiency": efficiency, "predicted": predicted, "error": error})
    return rows


def comparison(rows: Sequence[dict]) -> Table:
    title = "tokens/s per chip, predicted with the efficiency fitted to the family's other runs"
    out = Table(
        "source", "hardware", "model", "published", "predicted", "step time off", "efficiency", "note", title=title
    )
    for row in rows:
        run = row["run"]
        speed = f"{run.published:,.0f}", f"{row['predicted']:,.0f}", f"{row['error']:+.0%}", f"{row['efficiency']:.2f}"
        axes = ", ".join(f"{name} {size}" for name, size in run.mesh.items())
        out.add_row(run.source, run.hardware, f"{run.model} {axes}", *speed, run.note)
    return out


# Training times that the project's founding texts give: (model, tokens, hardware, weeks).
V100 = Chip(
    name="v100",
    platform="cuda",
    kinds=("Tesla V100-SXM2-32GB",),
    flops={"bfloat16": 125e12, "float32": 15.7e12},  # float16: it has no bfloat16
    hbm_bytes=32 * 2**30,
    hbm_bandwidth=900e9,
    link_bandwidth=150e9,
    torus_dims=0,
    network_bandwidth=12.5e9,
    node=8,
)
EXAMPLES = [
    (dense(24, 2048, 16, 16, 6528, 32000), 40e9, System("v100x32", V100, 32, None, (4, 8)), 2048, "1"),
    (dense(32, 4096, 32, 32, 9216, 32000), 400e9, system("a100-80gbx64"), 2048, "2 to 3"),
    (MODELS["llama2-70b"], 2e12, system("a100-80gbx2048"), 4096, "3 to 4"),
]


def examples() -> Table:
    out = Table(
        "parameters", "tokens", "hardware", "said, weeks", "predicted", "at 100% of the peak", "MFU to be as said"
    )
    for model, tokens, hardware, seq_len, weeks in EXAMPLES:
        config = run_config(model, seq_len, hardware.num_devices * 2 * seq_len, {}, "dots", tokens)
        days = predict(config, hardware).step_seconds * tokens / config.train.batch_tokens / 86400
        useful = flops_per_token(config.model, seq_len) * tokens
        least = useful / (hardware.num_devices * hardware.chip.flops["bfloat16"]) / (7 * 86400)
        said = [float(number) for number in weeks.split(" to ")]
        needed = " to ".join(f"{least / number:.0%}" for number in reversed(said))
        size = f"{parameter_count(config.model) / 1e9:.1f}B"
        out.add_row(size, f"{tokens / 1e9:.0f}B", hardware.name, weeks, f"{days / 7:.1f}", f"{least:.1f}", needed)
    return out


def parts() -> Table:
    out = Table("hardware", "model", "FLOPs per chip", "seconds that add up", "seconds beside arithmetic")
    for run in RUNS:
        found = predict(run.config, system(run.hardware), run.work)
        texts = (
            ", ".join(f"{name} {seconds:.3f}" for name, seconds in group.items() if seconds)
            for group in (found.parts, found.overlapped)
        )
        out.add_row(run.hardware, run.model, f"{run.work.flops:.3e}", *texts)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", action="store_true", help="what each prediction is made of, in seconds")
    options = parser.parse_args()
    rows, console = results(RUNS), Console(width=180)
    console.print(comparison(rows))
    if options.parts:
        console.print(parts())
    console.print(examples())
    families = dict.fromkeys(map(family, RUNS))
    fitted = {name: round(fit([run for run in RUNS if family(run) == name]), 2) for name in families}
    within = sum(abs(row["error"]) <= 0.2 for row in rows)
    print(json.dumps({"fitted": fitted, "used": EFFICIENCY, "runs": len(rows), "within_20_percent": within}))


if __name__ == "__main__":
    main()

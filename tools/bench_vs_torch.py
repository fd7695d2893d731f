"""Training speed on CPU beside an equivalent PyTorch eager model, in pairs.

    python tools/bench_vs_torch.py configs/runs/quickstart.yaml --pairs 5 --steps 3

Two processes hold the same model (shapes, batch, float32, AdamW, clipping by norm) and take turns, so that both meet
the same noise of the machine; what counts is the median of the ratios. PyTorch is needed here alone: install
`torch==2.13.0` (CPU) beside maxlm, or name an interpreter that has it with --torch-python. The PyTorch model uses
`scaled_dot_product_attention` with `is_causal` and no document mask, which is the easier task.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of a run; its data need not exist")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--pairs", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps in a turn (default 3)")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch (default: this one)")
    parser.add_argument("--side", choices=("maxlm", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        answer(torch_side(json.loads(options.config)) if options.side == "torch" else maxlm_side(options))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    from maxlm.config import load

    config = load(options.config, options.overrides)
    shape = config.model.model_dump(mode="json") | {
        "batch": config.batch_size, "seq_len": config.data.seq_len, "optimizer": config.optimizer.model_dump()
    }  # fmt: skip
    steps = str(options.steps)
    maxlm = start([sys.executable, __file__, options.config, *options.overrides, "--side", "maxlm", "--steps", steps])
    torch = start([options.torch_python, __file__, json.dumps(shape), "--side", "torch", "--steps", steps])
    tokens = config.train.batch_tokens * options.steps
    names = [ask(maxlm)["version"], ask(torch)["version"]]
    ask(maxlm), ask(torch)  # warm-up: compilation, thread pools
    pairs = []
    for _ in range(options.pairs):
        ours, theirs = tokens / ask(maxlm)["seconds"], tokens / ask(torch)["seconds"]
        pairs.append((ours, theirs))
        print(f"{names[0]} {ours:,.0f} tok/s   {names[1]} {theirs:,.0f} tok/s   ratio {ours / theirs:.2f}", flush=True)
    for side in (maxlm, torch):
        side.stdin.close()
        side.wait()
    medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    result = {"maxlm": medians[0], "torch": medians[1], "ratio": ratio, "versions": names}
    print(json.dumps(result | {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine()}))


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(side: subprocess.Popen) -> dict:
    side.stdin.write("go\n")
    side.stdin.flush()
    line = side.stdout.readline()
    if not line:
        sys.exit(f"{side.args[0]} stopped with exit code {side.wait()}")
    return json.loads(line)


def answer(side: tuple[str, Callable[[], None]]) -> None:
    """Serve one side: its version first, then the seconds of a turn for every line of stdin."""
    version, turn = side
    replies = ({"version": version},)
    for number, _ in enumerate(sys.stdin):
        if number < len(replies):
            print(json.dumps(replies[number]), flush=True)
            continue
        began = time.perf_counter()
        turn()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


def maxlm_side(options: argparse.Namespace) -> tuple[str, Callable[[], None]]:
    """The step that `maxlm train` runs, on random tokens in documents of about 200."""
    import jax
    from timed_steps import TimedSteps

    from maxlm.config import load

    steps = TimedSteps(load(options.config, options.overrides), document_tokens=200)
    return f"maxlm (jax {jax.__version__})", lambda: sum(steps.run(options.steps))


def torch_side(shape: dict) -> tuple[str, Callable[[], None]]:
    """The same model as an engineer writes it in PyTorch eager."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    D, H, K, E, length = (shape[n] for n in ("embed_dim", "num_heads", "num_kv_heads", "head_dim", "seq_len"))
    frequency = shape["rope"]["theta"] ** (-torch.arange(0, E, 2) / E)
    angle = torch.arange(length)[:, None] * frequency
    sin, cos = angle.sin(), angle.cos()

    def rope(x):
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList([nn.RMSNorm(D), nn.RMSNorm(D)])
            self.query, self.out = nn.Linear(D, H * E, bias=False), nn.Linear(H * E, D, bias=False)
            self.key, self.value = nn.Linear(D, K * E, bias=False), nn.Linear(D, K * E, bias=False)
            self.gate, self.up = (nn.Linear(D, shape["mlp_dim"], bias=False) for _ in range(2))
            self.down = nn.Linear(shape["mlp_dim"], D, bias=False)

        def forward(self, x):
            h = self.norms[0](x)
            q, k, v = (w(h).unflatten(-1, (-1, E)).transpose(1, 2) for w in (self.query, self.key, self.value))
            a = F.scaled_dot_product_attention(rope(q), rope(k), v, is_causal=True, enable_gqa=K != H)
            x = x + self.out(a.transpose(1, 2).flatten(2))
            h = self.norms[1](x)
            return x + self.down(F.silu(self.gate(h)) * self.up(h))

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(shape["vocab_size"], D)
            self.layers = nn.ModuleList([Layer() for _ in range(shape["num_layers"])])
            self.norm = nn.RMSNorm(D)
            self.output = nn.Linear(D, shape["vocab_size"], bias=False)
            if shape["tie_embeddings"]:
                self.output.weight = self.embedding.weight

        def forward(self, tokens):
            x = self.embedding(tokens)
            for layer in self.layers:
                x = layer(x)
            return self.output(self.norm(x))

    model, settings = Decoder(), shape["optimizer"]
    betas = (settings["b1"], settings["b2"])
    optimizer = torch.optim.AdamW(model.parameters(), settings["lr"], betas, weight_decay=settings["weight_decay"])
    tokens = torch.randint(shape["vocab_size"], (shape["batch"], length + 1))
    steps = int(sys.argv[sys.argv.index("--steps") + 1])

    def turn() -> None:
        for _ in range(steps):
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings["clip_norm"] or 1e9)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return f"torch {torch.__version__}", turn


if __name__ == "__main__":
    main()

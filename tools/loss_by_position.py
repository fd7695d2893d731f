"""Held-out loss by a token's place in its document: what a model makes of positions beyond its training's length.

    python tools/loss_by_position.py runs/quickstart runs/long-context --data prepared/stdlib-val --length 2048
    python tools/loss_by_position.py runs/quickstart --data prepared/stdlib-val --length 2048 --theta 100000

Every column is a model, every row the targets that are predicted from positions in a range, in nats per target. With
--theta the models are read with another rope.theta than they were trained with. All models see the same windows; a
document that a window cuts begins anew in the next, at position 0.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.table import Table

from maxlm.config import MeshConfig
from maxlm.data.loader import num_sequences, sequential
from maxlm.data.shards import Shards
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError
from maxlm.evaluate.load import Loaded, Source, find_source, load_source
from maxlm.evaluate.perplexity import ahead
from maxlm.model.loss import target_losses
from maxlm.parallel import runtime
from maxlm.parallel.batch import addressed_rows, place
from maxlm.parallel.mesh import build_mesh
from maxlm.report.progress import track
from maxlm.report.terminal import console

CHUNK = 128


def with_theta(source: Source, theta: float) -> Source:
    """The model before it is read, with another rope.theta."""
    rope = source.model.rope.model_copy(update={"theta": theta})
    return source._replace(model=source.model.model_copy(update={"rope": rope}))


def measure(
    loaded: Loaded, shards: Shards, length: int, sequences: int | None, batch: int, edges: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss of the targets at positions [0, edges[0]), [edges[0], edges[1]), ..., and their numbers.

    float64 and int64 [edges]; NaN where there are none. The position is that of the token that predicts the target.
    """
    rows = addressed_rows(batch, loaded.mesh)
    batches = list(sequential(shards, seq_len=length, sequences=sequences, batch_size=batch, rows=rows))
    sums, counts = np.zeros(len(edges)), np.zeros(len(edges), np.int64)
    with jax.set_mesh(loaded.mesh):
        losses = (_losses(loaded.graphdef, loaded.params, place(one, rows, batch, loaded.mesh)) for one in batches)
        total = -(-num_sequences(shards, length, sequences) // batch)
        for one, nll_BS in zip(batches, track(ahead(losses), f"measuring {loaded.path.name}", total), strict=True):
            part = np.searchsorted(edges, one["positions"], "right")
            chosen = one["weights"] > 0
            sums += np.bincount(part[chosen], np.asarray(nll_BS, np.float64)[chosen], len(edges))
            counts += np.bincount(part[chosen], minlength=len(edges))
    with np.errstate(invalid="ignore"):
        return sums / counts, counts


@partial(jax.jit, static_argnums=0)
def _losses(graphdef: nnx.GraphDef, params: dict, batch: dict) -> jax.Array:
    """Nats of every target, float32 [B, S]."""
    model = nnx.merge(graphdef, params)
    x_BSD = model.hidden(batch["tokens"], batch["segment_ids"], batch["positions"]).x_BSD
    weights_BS = batch["weights"].astype(jnp.float32)
    return target_losses(x_BSD, model.output_matrix(), batch["targets"], weights_BS, CHUNK, model.config.logit_softcap)[
        0
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="runs, checkpoints, imported models")
    parser.add_argument("--data", required=True, metavar="DIR", help="held-out shards of their tokenizer")
    parser.add_argument("--length", type=int, required=True, help="tokens of a window")
    parser.add_argument("--edges", type=int, nargs="+", metavar="N", help="ends of the ranges; default: doubling")
    parser.add_argument("--sequences", type=int, help="windows that are measured; default: all")
    parser.add_argument("--batch", type=int, default=2, help="windows at a time (default: 2)")
    parser.add_argument("--theta", type=float, help="rope.theta in place of the models' own")
    args = parser.parse_args()
    runtime.setup()
    shards = Shards(Path(args.data))
    edges = sorted({*(args.edges or [args.length // 2**n for n in range(3, -1, -1)]), args.length})
    mesh, columns = build_mesh(MeshConfig(), jax.devices()[:1]), []
    for path in args.paths:
        source = find_source(path)
        loaded = load_source(source if args.theta is None else with_theta(source, args.theta), mesh=mesh)
        if not loaded.tokenizer.equals(Tokenizer(shards.local_tokenizer(), shards.manifest.tokenizer)):
            raise ConfigError(
                f"{args.data}: was prepared with another tokenizer than {path}; prepare it with the model's"
            )
        columns.append(measure(loaded, shards, args.length, args.sequences, args.batch, edges))
    table = Table("positions", "targets", *args.paths)
    for number, (low, high) in enumerate(zip([0, *edges], edges, strict=False)):
        table.add_row(
            f"{low:,}-{high - 1:,}", f"{columns[0][1][number]:,}", *(f"{one[0][number]:.4f}" for one in columns)
        )
    whole = columns[0][1]
    means = [np.nansum(one * counts) / counts.sum() for one, counts in columns]
    table.add_row("all", f"{whole.sum():,}", *(f"{mean:.4f}" for mean in means))
    console().print(table)


if __name__ == "__main__":
    main()

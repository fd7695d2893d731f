"""Memory of one device at the fullest moment of a step, by parts, before anything is compiled.

    estimate(layout_for(config, system))      # bytes by part; their sum is what the compiler's peak should be

Parameters, moments and the average of the parameters are there throughout. Three moments compete for the peak:

    loss        saved activations, logits, the output matrix and its gradient
    backward    saved activations, the gradients of all layers, and one layer at work with its gathered weights
    update      gradients

How XLA packs a layer's arrays follows no formula: the constants are fitted to compiled programs, which
benchmarks/2026-11-24-plan-memory.md compares with the estimates.
"""

import math

from maxlm.config import Config
from maxlm.parallel.sharding import GATHERED, replicated
from maxlm.plan.communication import STACKED, Layout
from maxlm.train import optimizer

FLOAT32 = 4
# Arrays that exist at one time while a layer is differentiated, by what they are as wide as.
ATTENTION_WORK = {"residual": 5, "heads": 7}
MLP_WORK = {"residual": 6, "hidden": 6}
EXPERTS_WORK = {"residual": 6, "hidden": 5, "rows": 3}
# Copies of a part's weights in the compute type: gathered, and their gradient before it is scattered.
WEIGHT_COPIES = 2


def estimate(plan: Layout) -> dict[str, float]:
    """Bytes by part at the fullest of the moments."""
    moments = (_loss(plan), _backward(plan), _update(plan))
    return _state(plan) | max(moments, key=lambda parts: sum(parts.values()))


def _state(plan: Layout) -> dict[str, float]:
    config, whole = plan.config, plan.config.parallel.zero == 1
    parameters = sum(_stored(plan, leaf, names, whole) * leaf.dtype.itemsize for _, leaf, names in plan.leaves)
    moments = sum(_stored(plan, leaf, names) * FLOAT32 * _moments(config, names) for _, leaf, names in plan.leaves)
    average = 0.0 if config.optimizer.ema is None else _gradients(plan)  # as wide, and split likewise
    parts = {"moments": moments, "average": average}
    return {"parameters": parameters} | (dict.fromkeys(parts, 0.0) if config.optimizer.offload else parts)


def _loss(plan: Layout) -> dict[str, float]:
    """Logits and what is made of them, and the output matrix with its gradient."""
    config, model = plan.config, plan.config.model
    vocabulary, width = model.vocab_size / plan.shape["tensor"], plan.width
    if config.loss.split == "vocabulary":
        block = min(config.loss.block, vocabulary)
        logits = plan.rows * block * (FLOAT32 + width)
        matrix = model.embed_dim * block * (width + FLOAT32)
        hidden = plan.rows * model.embed_dim * (FLOAT32 + 2 * width)
    else:
        sequences = plan.rows / (config.data.seq_len / plan.shape["context"])
        logits = sequences * min(config.loss.chunk, config.data.seq_len) * vocabulary * (FLOAT32 + width)
        # The gradient of a tied table is turned round.
        matrix = model.embed_dim * vocabulary * (width + FLOAT32 * (2 if model.tie_embeddings else 1))
        hidden = 3 * plan.rows * model.embed_dim * width
    return {
        "saved activations": _saved(plan),
        "gradients": _accumulated(plan),
        "logits": logits + hidden,
        "gathered weights": matrix + _tables(plan),
    }


def _backward(plan: Layout) -> dict[str, float]:
    """The layer's attention or its MLP, whichever takes more, with its gathered weights."""
    attention, mlp = _attention(plan), _mlp(plan)
    work, weights = max(attention, mlp, key=sum)
    return {
        "saved activations": _saved(plan),
        "gradients": _gradients(plan) + _accumulated(plan),
        "a layer at work": work,
        "gathered weights": weights + _tables(plan),
    }


def _update(plan: Layout) -> dict[str, float]:
    """Gradients, and as much again of what the optimizer makes of them."""
    return {"gradients": 2 * _gradients(plan)}


def _saved(plan: Layout) -> float:
    """What the forward pass of all layers leaves to the backward pass."""
    config, model = plan.config, plan.config.model
    rows, stages = plan.rows_of_stage, plan.stages
    width = plan.width
    layer_input = model.embed_dim * width / _sequence_split(plan)
    kept = _kept(plan) * width
    if config.remat.policy == "offload":  # in the hosts' memory, but for the one in use and the next
        return 2 * rows * layer_input + plan.rows * layer_input
    layers, ticks = plan.layers_of_stage, plan.ticks
    first = plan.rows * model.first_layers * (layer_input + kept)
    if plan.stages_recompute:  # a stage's input at every tick, and the layers of the stage at work
        return first + rows * ((ticks + config.pipeline.microbatches) * layer_input + layers * (layer_input + kept))
    embedded = plan.rows * layer_input if stages == 1 else 2 * config.pipeline.microbatches * rows * layer_input
    return first + embedded + rows * ticks * layers * (layer_input + kept)


def _kept(plan: Layout) -> float:
    """Numbers per token that the remat policy keeps of a layer besides its input."""
    model, policy, tensor = plan.config.model, plan.config.remat.policy, plan.shape["tensor"]
    heads, kv_heads = model.num_heads / tensor, max(1, model.num_kv_heads / tensor)
    queries, keys = heads * model.head_dim, kv_heads * model.head_dim
    hidden = _hidden(plan)
    split = _sequence_split(plan)
    # With attention's result the log-sum-exp of each head is kept, in float32: as much as two numbers.
    sizes = {
        "latent": model.latent_width / split,
        "query": queries,
        "key": keys,
        "value": kv_heads * model.value_dim,
        "attention": heads * (model.value_dim + 2),
        "attention_out": model.embed_dim / split,
        "mlp_gate": hidden * model.mlp_gated,
        "mlp_up": hidden,
    }
    if policy in ("full", "offload"):
        return 0.0
    if isinstance(policy, tuple):
        return sum(sizes[name] for name in policy)
    # The MLP's last product is the next layer's input.
    products = sum(sizes.values())
    return (
        products
        if policy == "dots"
        else products + hidden * (1 + model.mlp_gated) + 2 * model.embed_dim + queries + keys
    )


def _attention(plan: Layout) -> tuple[float, float]:
    """(activations, weights) while attention is differentiated."""
    model, rows, tensor = plan.config.model, plan.rows_of_stage, plan.shape["tensor"]
    heads = (model.num_heads / 2 + max(model.num_kv_heads, tensor)) * (model.head_dim + model.value_dim) / tensor
    numbers = ATTENTION_WORK["residual"] * (model.embed_dim + model.latent_width) + ATTENTION_WORK["heads"] * heads
    return rows * numbers * plan.width, WEIGHT_COPIES * _gathered(plan, "attention") * plan.width


def _mlp(plan: Layout) -> tuple[float, float]:
    """(activations, weights) while the MLP or the experts are differentiated."""
    config, rows = plan.config, plan.rows_of_stage
    if config.model.moe is None:
        parts, work, exchanged = config.remat.mlp_chunks, MLP_WORK, 0.0
    else:
        parts, work = config.parallel.exchange_pieces, EXPERTS_WORK
        exchanged = work["rows"] * _rows_per_token(plan) * config.model.embed_dim
    numbers = work["residual"] * config.model.embed_dim + (work["hidden"] * _hidden(plan) + exchanged) / parts
    return rows * numbers * plan.width, WEIGHT_COPIES * _gathered(plan, "mlp") * plan.width


def _hidden(plan: Layout) -> float:
    """Width of the hidden layer per token: of all experts that it passes."""
    model, moe = plan.config.model, plan.config.model.moe
    hidden = model.mlp_dim if moe is None else moe.mlp_dim * (_rows_per_token(plan) + moe.shared_experts)
    return hidden / plan.shape["tensor"]


def _rows_per_token(plan: Layout) -> float:
    """Rows of an expert's buffer for a token: those chosen, or where experts are elsewhere the most that may come."""
    moe, experts = plan.config.model.moe, plan.shape["expert"]
    return moe.experts_per_token if experts == 1 else experts * min(moe.experts_per_token, moe.num_experts // experts)


def _gathered(plan: Layout, part: str) -> float:
    """Numbers of one layer's weights of a part, as they are used."""
    layers, found = plan.config.model.num_layers, 0.0
    for path, leaf, names in plan.leaves:
        if STACKED & set(names) and part in path:
            kept = (axes for name, axes in plan.split(names, leaf.shape).items() if name not in GATHERED | STACKED)
            found += math.prod(leaf.shape) / plan.size(axis for axes in kept for axis in axes)
    return found / (layers - plan.config.model.first_layers)


def _gradients(plan: Layout) -> float:
    """In float32, sharded as the moments are."""
    return sum(_stored(plan, leaf, names) * FLOAT32 for _, leaf, names in plan.leaves)


def _accumulated(plan: Layout) -> float:
    """The sum of the gradients of the microbatches before this one, which the loop over them holds twice."""
    return 2 * _gradients(plan) if plan.config.train.accumulate > 1 else 0.0


def _tables(plan: Layout) -> float:
    """Embedding table and output matrix: XLA for TPU takes their gathers out of the loop over microbatches."""
    model = plan.config.model
    if plan.config.train.accumulate == 1 or plan.platform != "tpu":
        return 0.0
    tables = 1 if model.tie_embeddings else 2
    return tables * model.vocab_size * model.embed_dim / plan.shape["tensor"] * plan.width


def _stored(plan: Layout, leaf, names: tuple, whole: bool = False) -> float:
    """Numbers of a parameter on one device; `whole` where the axes that are gathered do not split it."""
    split = plan.split(replicated(names) if whole else names, leaf.shape)
    return math.prod(leaf.shape) / plan.size(axis for axes in split.values() for axis in axes)


def _moments(config: Config, names: tuple) -> int:
    stack = sum(name in optimizer.STACKED for name in names)
    return 1 if config.optimizer.name == "muon" and names[stack:] in optimizer.REDUCED else 2


def _sequence_split(plan: Layout) -> int:
    return plan.shape["tensor"] if plan.config.parallel.sequence else 1

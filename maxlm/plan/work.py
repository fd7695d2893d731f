"""What one chip does in a step: FLOPs, memory traffic and bytes sent, estimated or read from a compiled program."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax
from jax.sharding import Mesh

from maxlm.model.layers import TABLE, is_matrix
from maxlm.parallel import hlo
from maxlm.parallel.sharding import GATHERED
from maxlm.parallel.traffic import Transfer, totals, transfers
from maxlm.plan.communication import STACKED, Layout, expected
from maxlm.plan.flops import Workload, matmul_flops
from maxlm.plan.hbm import memory_traffic

# Products with the output matrix per token, by loss.split: logits, and the gradients of both factors; by vocabulary the
# logits once more.
HEAD_PRODUCTS = {"sequence": 3, "vocabulary": 4}
# The name in a remat policy that saves the product with a parameter.
SAVED_BY = {
    "query_down": "latent",
    "kv_down": "latent",
    "key_rope": "latent",
    "query_up": "query",
    "key_up": "key",
    "value_up": "value",
    "query": "query",
    "key": "key",
    "value": "value",
    "out": "attention_out",
    "gate": "mlp_gate",
    "up": "mlp_up",
}


@dataclass(frozen=True)
class Work:
    """Of one chip, in one optimizer step."""

    flops: float  # products and attention, with what is recomputed and what a pipeline's bubbles compute
    memory_bytes: float  # read and written by the forward and backward passes
    update_bytes: float  # read and written by the optimizer
    weights: dict[str, float]  # bytes of parameters and gradients sent, by mesh axis
    activations: dict[str, float]  # bytes of everything else sent


def estimated_work(plan: Layout) -> Work:
    """By formulas, before anything is compiled."""
    sent = expected(plan)
    return Work(
        flops=sum(_product_flops(plan)) + _attention_flops(plan),
        memory_bytes=_weight_bytes(plan) + _activation_bytes(plan),
        update_bytes=_update_bytes(plan),
        weights=dict(sent.weights),
        activations=dict(sent.activations),
    )


def compiled_work(text: str, mesh: Mesh, plan: Layout) -> Work:
    """What the program with this optimised HLO text does; of its memory traffic the update's part is estimated.

    What moves over `data` or `fsdp` is taken for parameters and gradients; over `expert` what is no exchange, and over
    `context` what is not of the keys' size. A ragged exchange sends the rows of an even load.

    Raises ValueError where a trip count or a kernel's work does not follow from the program.
    """
    moved = [_expected_rows(transfer, plan) for transfer in transfers(text, mesh)]
    update = _update_bytes(plan)
    return Work(
        memory_bytes=memory_traffic(text) - update,
        update_bytes=update,
        flops=matmul_flops(text, Workload.of(plan.config, plan.shape["expert"])),
        weights=totals(transfer for transfer in moved if _is_weights(transfer, plan)),
        activations=totals(transfer for transfer in moved if not _is_weights(transfer, plan)),
    )


def _is_weights(transfer: Transfer, plan: Layout) -> bool:
    if transfer.axes == ("expert",):
        return "all-to-all" not in transfer.opcode
    if transfer.axes == ("context",):
        return transfer.opcode != "collective-permute" and not _is_keys(transfer, plan)
    return bool({"data", "fsdp"} & set(transfer.axes))


def _is_keys(transfer: Transfer, plan: Layout) -> bool:
    """Whether it is as large as the keys, or values, of whole sequences."""
    model = plan.config.model
    heads = max(1, model.num_kv_heads // plan.shape["tensor"])
    tokens = plan.rows_of_stage * plan.shape["context"]
    sizes = {tokens * heads * width for width in (model.head_dim, model.value_dim)}
    return not sizes.isdisjoint(math.prod(hlo.dimensions(shape)) for shape in transfer.shape.split(" + "))


def _expected_rows(transfer: Transfer, plan: Layout) -> Transfer:
    moe, experts = plan.config.model.moe, plan.shape["expert"]
    if transfer.opcode != "ragged-all-to-all" or moe is None:
        return transfer
    chosen = plan.rows_of_stage * moe.experts_per_token / plan.config.parallel.exchange_pieces
    sent = (1 - 1 / experts) * chosen * plan.config.model.embed_dim * plan.width
    return replace(transfer, size=min(transfer.size, sent))


def _product_flops(plan: Layout) -> Iterator[float]:
    """Of each matrix that multiplies tokens: forward, again where recomputed, and twice backward."""
    for path, leaf, names in _matrices(plan):
        if "vocab" in names:
            yield 2 * _local(plan, leaf, names) * _runs(plan, names) * HEAD_PRODUCTS[plan.config.loss.split]
        else:
            products = 3 + _recomputed(plan, path, names)
            yield 2 * _local(plan, leaf, names) * _share(plan, names) * _runs(plan, names) * products


def _matrices(plan: Layout) -> Iterator[tuple[tuple[str, ...], jax.ShapeDtypeStruct, tuple[str | None, ...]]]:
    """The parameters that multiply tokens; a tied table does so as the output matrix."""
    for path, leaf, names in plan.leaves:
        if is_matrix(names) or (names == TABLE and plan.config.model.tie_embeddings):
            yield path, leaf, names


def _local(plan: Layout, leaf: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> float:
    """Numbers of a parameter that a chip multiplies with: all but what other chips hold for good."""
    kept = [axis for name, axes in plan.split(names, leaf.shape).items() if name not in GATHERED for axis in axes]
    return math.prod(leaf.shape) / plan.size(kept)


def _share(plan: Layout, names: tuple[str | None, ...]) -> float:
    """Of a chip's experts the part that one token of its own meets, at an even load.

    XLA's grouped product for GPUs has no kernel: it multiplies every row of a buffer with all experts of the chip.
    """
    moe, experts = plan.config.model.moe, plan.shape["expert"]
    if "experts" not in names:
        return 1.0
    if plan.platform == "cuda":
        chosen = moe.experts_per_token
        return chosen if experts == 1 else experts * min(chosen, moe.num_experts // experts)
    return moe.experts_per_token * experts / moe.num_experts


def _runs(plan: Layout, names: tuple[str | None, ...]) -> float:
    """Rows that a parameter meets on a chip in a step."""
    if STACKED & set(names):
        return plan.rows_of_stage * plan.ticks / plan.config.pipeline.repeats * plan.config.train.accumulate
    return plan.rows * plan.config.train.accumulate


def _recomputed(plan: Layout, path: tuple[str, ...], names: tuple[str | None, ...]) -> int:
    """Times that the product with a layer's parameter is computed again for the backward pass.

    The last product of a layer is not: nothing of the layer's backward pass needs its result, unless experts weight it
    or a norm follows.
    """
    policy, again = plan.config.remat.policy, int(plan.stages_recompute)
    unneeded = path[-1] == "down" and "experts" not in names and not plan.last_product_recomputed
    if policy in ("none", "dots") or unneeded:
        return again
    if isinstance(policy, tuple) and SAVED_BY.get(path[-1]) in policy:
        return again
    return again + 1


def _attention_flops(plan: Layout) -> float:
    """Scores and values: 2 products forward, again where recomputed, and those of the backward kernels.

    Backward they are 7 where the gradients of queries and those of keys and values have a kernel each, as on TPU and
    with packed documents on GPUs: both compute scores and the gradients of probabilities. cuDNN has one, and XLA's
    reference, on CPU, keeps the scores. Of these 4, 3 and 2 are as wide as keys, the others as values. A causal mask
    halves them, but for the reference.
    """
    config, policy = plan.config, plan.config.remat.policy
    model = config.model
    saved = policy in ("none", "dots") or (isinstance(policy, tuple) and "attention" in policy)
    again = plan.stages_recompute + (not saved)
    two_kernels = plan.platform == "tpu" or config.data.mask_documents
    of_keys, of_values = (2, 2) if plan.platform == "cpu" else (4, 3) if two_kernels else (3, 2)
    width = (1 + again + of_keys) * model.head_dim + (1 + again + of_values) * model.value_dim
    keys = Workload.of(config, 1).keys if plan.platform != "cpu" else config.data.seq_len
    rows = plan.rows_of_stage * plan.ticks * plan.layers_of_stage * config.train.accumulate
    rows += plan.rows * model.first_layers * config.train.accumulate
    return 2 * model.num_heads / plan.shape["tensor"] * width * keys * rows


def _weight_bytes(plan: Layout) -> float:
    """Every gathered matrix is read once for each product, or its gradient written, in every microbatch and tick.

    For each chunk of the sequence in the loss the output matrix is read for two products, and its float32 gradient read
    and written; by vocabulary each block is read three times, and its gradient written once.
    """
    config, head = plan.config, 3 * plan.width + 4
    if config.loss.split == "sequence":
        chunks = math.ceil(config.data.seq_len / plan.shape["context"] / config.loss.chunk)
        head = (2 * plan.width + 2 * 4) * chunks
    found = 0.0
    for path, leaf, names in _matrices(plan):
        if "vocab" in names:
            found += _local(plan, leaf, names) * head * config.train.accumulate
        else:
            times = config.train.accumulate
            times *= plan.ticks / config.pipeline.repeats if STACKED & set(names) else 1
            found += _local(plan, leaf, names) * plan.width * (3 + _recomputed(plan, path, names)) * times
    return found


def _activation_bytes(plan: Layout) -> float:
    """Reads and writes of a layer's arrays: forward, in each recomputation, and twice as much backward.

    Of the residual stream's width 10 (norms and products read and write it), of latents 6, of heads 6 (queries 3, what
    they mix 3), of keys and values 6 each, of the MLP 6. Logits of a chunk are written and read 3 times in float32.
    """
    model, tensor = plan.config.model, plan.shape["tensor"]
    hidden = model.mlp_dim if model.moe is None else model.moe.mlp_dim * model.moe.experts_per_token
    split = (3 * model.num_heads + 6 * model.num_kv_heads) * (model.head_dim + model.value_dim) + 6 * hidden
    numbers = 10 * model.embed_dim / (tensor if plan.config.parallel.sequence else 1) + split / tensor
    numbers += 6 * model.latent_width
    rows = plan.rows_of_stage * plan.ticks * plan.layers_of_stage * plan.config.train.accumulate
    logits = plan.rows * plan.config.train.accumulate * model.vocab_size / tensor * 4 * 6
    return numbers * plan.width * (plan.forward_passes + 2) * rows + logits


def _update_bytes(plan: Layout) -> float:
    """Parameters, both moments and the average of the parameters are read and written, gradients read twice (for their
    norm and for the update)."""
    found, average = 0.0, 0 if plan.config.optimizer.ema is None else 2 * 4
    for _, leaf, names in plan.leaves:
        split = plan.split(names, leaf.shape)
        shards = plan.size(axis for axes in split.values() for axis in axes)
        found += math.prod(leaf.shape) / shards * (2 * leaf.dtype.itemsize + 2 * 2 * 4 + 2 * 4 + average)
    return found

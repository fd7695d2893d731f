"""Mixture of experts: a router sends every token to a few of many MLPs, and no token is ever dropped.

Everything between router and output runs per device (`parallel.sharding.manual`). Outside these layers the expert
axis of the mesh shards the batch; inside, it shards the experts, and rows travel over it (dispatch.py). Axis letters
as in layers.py and dispatch.py; E is the number of experts here, of which G groups have P each.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxlm.config import ModelConfig, MoeConfig
from maxlm.model.dispatch import Routes, exchange, grouped_product, plan_routes, take_rows
from maxlm.model.layers import ACTIVATIONS, MLP, parameter
from maxlm.parallel.sharding import all_gather, manual, split_axes


class RouterStats(NamedTuple):
    """Of one layer and one batch, summed over all devices."""

    penalty: jax.Array  # float32 scalar: weighted regularisers, summed over the tokens that are no padding
    load_E: jax.Array  # int32 [E]: assignments that each expert really processed


class Choice(NamedTuple):
    expert_NK: jax.Array  # int32; E where the token is padding
    weight_NK: jax.Array  # float32
    penalty: jax.Array  # as in RouterStats


class MoE(nnx.Module):
    """The router, E routed experts and, where asked for, the shared ones as one MLP.

    `platform` is that of the devices and chooses the kernels; `exchange` is "padded" (runs everywhere), "ragged" (TPU
    and GPU) or "auto". With `pieces` a device sends its tokens in that many parts, one after the other: the exchange's
    buffers, which are as large as the worst case of all rows on one device, shrink by that factor.
    """

    def __init__(
        self,
        config: ModelConfig,
        out_std: float,
        key: jax.Array,
        dtype,
        *,
        platform: str = "cpu",
        exchange: str = "auto",
        pieces: int = 1,
    ):
        router, gate, up, down, shared = jax.random.split(key, 5)
        moe, std = config.moe, config.init_std
        wide, narrow = (
            (moe.num_experts, config.embed_dim, moe.mlp_dim),
            (moe.num_experts, moe.mlp_dim, config.embed_dim),
        )
        self.moe, self.platform, self.pieces = moe, platform, pieces
        self.activation = config.activation
        self.padded = exchange == "padded" or (exchange == "auto" and platform == "cpu")
        # Scores decide who computes what: float32, whatever the parameters' type (Switch Transformer, section 2.4).
        shape = (config.embed_dim, moe.num_experts)
        self.router = parameter(router, shape, ("embed", "experts_router"), std, jnp.float32)
        self.gate = parameter(gate, wide, ("experts", "expert_embed", "mlp"), std, dtype)
        self.up = parameter(up, wide, ("experts", "expert_embed", "mlp"), std, dtype)
        self.down = parameter(down, narrow, ("experts", "mlp", "expert_embed"), out_std, dtype)
        if moe.balance == "bias":
            self.bias = nnx.Param(jnp.zeros(moe.num_experts, jnp.float32), logical_axes=("experts_router",))
        else:
            self.bias = None
        if moe.shared_experts:
            self.shared = MLP(config, moe.shared_experts * moe.mlp_dim, out_std, shared, dtype)
        else:
            self.shared = None

    def __call__(self, x_BSD: jax.Array, segment_ids_BS: jax.Array) -> tuple[jax.Array, RouterStats]:
        """Outputs [B, S, D] in the type of x, of the routed experts zero for padding (segment 0), and statistics."""
        variables = {"router": self.router, "gate": self.gate, "up": self.up, "down": self.down}
        if self.bias is not None:
            variables["bias"] = self.bias
        options = {"platform": self.platform, "padded": self.padded, "activation": self.activation}
        run = manual(
            partial(_routed, moe=self.moe, pieces=self.pieces, **options),
            (
                ("batch", "sequence", None),
                ("batch", "sequence"),
                {name: tuple(variable.get_metadata("logical_axes")) for name, variable in variables.items()},
            ),
            (("batch", "sequence", None), RouterStats((), ())),
        )
        out_BSD, stats = run(x_BSD, segment_ids_BS, {name: variable[...] for name, variable in variables.items()})
        if self.shared is not None:
            out_BSD = out_BSD + self.shared(x_BSD)
        return out_BSD, stats


def _routed(x_BSD, segment_ids_BS, params: dict, *, moe: MoeConfig, pieces: int, **options):
    """One device's part: its tokens [b, s, D] through the experts, wherever these are."""
    bias_E = jax.lax.stop_gradient(params["bias"]) if "bias" in params else None
    choice = route(x_BSD, segment_ids_BS > 0, all_gather(params["router"], 0, "embed"), bias_E, moe)
    axis = next(iter(split_axes("experts")), None)
    # Cast first: half the bytes to gather.
    weights = [all_gather(params[name].astype(x_BSD.dtype), 1, "expert_embed") for name in ("gate", "up")]
    weights.append(all_gather(params["down"].astype(x_BSD.dtype), 2, "expert_embed"))

    def piece(_, tokens):
        x_ND, expert_NK, weight_NK = tokens
        routes = plan_routes(expert_NK, moe.num_experts, axis, options["padded"])
        return None, (_dispatched(x_ND, weight_NK, routes, weights, axis, **options), routes.sizes_L)

    tokens = (x_BSD.reshape(-1, x_BSD.shape[-1]), choice.expert_NK, choice.weight_NK)
    pieces = math.gcd(pieces, tokens[0].shape[0])
    if pieces == 1:
        _, (out, sizes_L) = piece(None, tokens)
    else:
        # The scan keeps the inputs of a piece alone, and its buffers live for one piece.
        parts = jax.tree.map(lambda array: array.reshape(pieces, -1, array.shape[-1]), tokens)
        _, (out, sizes_PL) = jax.lax.scan(jax.checkpoint(piece, prevent_cse=False), None, parts)
        sizes_L = jnp.sum(sizes_PL, axis=0)
    out_BSD = _sum_equals(out.reshape(x_BSD.shape), split_axes("mlp"))
    return out_BSD, RouterStats(choice.penalty, _load(sizes_L, axis, moe.num_experts))


def _dispatched(
    x_ND, weight_NK, routes: Routes, weights, axis: str | None, *, platform: str, padded: bool, activation: str
) -> jax.Array:
    """Every token's experts, mixed by its weights: [N, D]; under tensor parallelism a partial sum."""
    rows_RD = take_rows(x_ND, routes.token_R, routes.slot_A.reshape(weight_NK.shape), fill=True)
    if axis is not None:
        rows_RD = exchange(rows_RD, routes.traffic, axis, padded, routes.received_R.size)
        rows_RD = take_rows(rows_RD, routes.received_R, routes.processed_R, fill=False)
    gate_LDF, up_LDF, down_LFD = weights
    gate_RF = checkpoint_name(grouped_product(rows_RD, gate_LDF, routes.sizes_L, platform), "mlp_gate")
    up_RF = checkpoint_name(grouped_product(rows_RD, up_LDF, routes.sizes_L, platform), "mlp_up")
    rows_RD = grouped_product(ACTIVATIONS[activation](gate_RF) * up_RF, down_LFD, routes.sizes_L, platform)
    if axis is not None:
        rows_RD = take_rows(rows_RD, routes.processed_R, routes.received_R, fill=False)
        rows_RD = exchange(rows_RD, routes.traffic.reversed(), axis, padded, routes.token_R.size)
    rows_AD = take_rows(rows_RD, routes.slot_A, routes.assignment_R, fill=True)
    rows_NKD = rows_AD.reshape(*weight_NK.shape, -1).astype(jnp.float32)
    return jnp.sum(rows_NKD * weight_NK[..., None], axis=1).astype(x_ND.dtype)


def route(x_BSD, valid_BS, router_DE, bias_E: jax.Array | None, moe: MoeConfig) -> Choice:
    """Experts and weights of every token of this device, in float32; what is not valid goes nowhere."""
    logits_BSE = jnp.einsum("BSD,DE->BSE", x_BSD.astype(jnp.float32), router_DE, precision=jax.lax.Precision.HIGHEST)
    scores_BSE = jax.nn.softmax(logits_BSE) if moe.scores == "softmax" else jax.nn.sigmoid(logits_BSE)
    # The bias moves the choice, not the weights (Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing").
    preference_BSE = jax.lax.stop_gradient(scores_BSE if bias_E is None else scores_BSE + bias_E)
    if moe.groups_per_token < moe.groups:
        preference_BSE = _in_best_groups(preference_BSE, moe)
    _, expert_BSK = jax.lax.top_k(preference_BSE, moe.experts_per_token)
    chosen_BSKE = expert_BSK[..., None] == jnp.arange(moe.num_experts)
    # A masked sum, not a gather, whose gradient would be a scatter.
    weight_BSK = jnp.sum(jnp.where(chosen_BSKE, scores_BSE[:, :, None], 0.0), axis=-1)
    if moe.normalize:
        # Sigmoids can all underflow to zero.
        weight_BSK = weight_BSK / (jnp.sum(weight_BSK, axis=-1, keepdims=True) + 1e-20)
    expert_BSK = jnp.where(valid_BS[..., None], expert_BSK, moe.num_experts)
    penalty = _penalty(logits_BSE, scores_BSE, chosen_BSKE, valid_BS, moe)
    choices = moe.experts_per_token
    return Choice(expert_BSK.reshape(-1, choices), moe.scale * weight_BSK.reshape(-1, choices), penalty)


def _in_best_groups(preference_BSE: jax.Array, moe: MoeConfig) -> jax.Array:
    """The preference for the experts of a token's best groups, minus infinity for all others.

    Groups are compared by their best expert (DeepSeek-V2, section 2.2.2), or by the sum of their two best ones
    (DeepSeek-V3, section 2.1.2); a balance bias counts in both.
    """
    preference_BSGP = preference_BSE.reshape(*preference_BSE.shape[:2], moe.groups, -1)
    if moe.group_score == "max":
        best_BSG = jnp.max(preference_BSGP, axis=-1)
    else:
        best_BSG = jnp.sum(jax.lax.top_k(preference_BSGP, 2)[0], axis=-1)
    _, group_BSN = jax.lax.top_k(best_BSG, moe.groups_per_token)
    chosen_BSG = jnp.any(group_BSN[..., None] == jnp.arange(moe.groups), axis=2)
    return jnp.where(chosen_BSG[..., None], preference_BSGP, -jnp.inf).reshape(preference_BSE.shape)


def _penalty(logits_BSE, scores_BSE, chosen_BSKE, valid_BS, moe: MoeConfig) -> jax.Array:
    """Balance loss and router z-loss, weighted and summed over the valid tokens of all devices.

    The balance loss of a sequence of T tokens is sum_e f_e P_e, where f_e = E / (K T) x (tokens of expert e) has no
    gradient and P_e is the mean score (Fedus et al. 2021, equations 4 to 6; per sequence as in DeepSeek-V3, equations
    17 to 20, so that neither the mesh nor accumulation changes it). Times T, it adds up like the cross-entropy.
    The z-loss is that of Zoph et al. 2022, equation 5.
    """
    penalty = jnp.float32(0)
    if moe.balance == "aux_loss" and moe.aux_weight:
        share_BSE = scores_BSE
        if moe.scores == "sigmoid":
            share_BSE = scores_BSE / (jnp.sum(scores_BSE, axis=-1, keepdims=True) + 1e-20)
        share_BE = jnp.sum(jnp.where(valid_BS[..., None], share_BSE, 0.0), axis=1)
        count_BE = jnp.sum(chosen_BSKE & valid_BS[..., None, None], axis=(1, 2), dtype=jnp.float32)
        tokens_B = jnp.sum(valid_BS, axis=1, dtype=jnp.float32)
        share_BE, count_BE, tokens_B = jax.lax.psum((share_BE, count_BE, tokens_B), split_axes("sequence"))
        factor_B = moe.num_experts / (moe.experts_per_token * jnp.maximum(tokens_B, 1.0))
        penalty += moe.aux_weight * jnp.sum(factor_B[:, None] * count_BE * share_BE)
    if moe.z_weight:
        log_partition_BS = jax.nn.logsumexp(logits_BSE, axis=-1)
        squares = jnp.sum(jnp.where(valid_BS, jnp.square(log_partition_BS), 0.0))
        penalty += moe.z_weight * jax.lax.psum(squares, split_axes("sequence"))
    return jax.lax.psum(penalty, split_axes("batch"))


def _load(sizes_L: jax.Array, axis: str | None, num_experts: int) -> jax.Array:
    """Rows that every expert was given, on all devices."""
    load_E = sizes_L
    if axis is not None:
        first = jax.lax.axis_index(axis) * sizes_L.size
        load_E = jax.lax.dynamic_update_slice(jnp.zeros(num_experts, sizes_L.dtype), sizes_L, (first,))
    return jax.lax.psum(load_E, split_axes("batch") + split_axes("sequence"))


def updated_bias(bias_LE: jax.Array, load_LE: jax.Array, rate: float) -> jax.Array:
    """The balance bias of all layers after a step: more for an expert below its layer's mean load, less above.

    Wang et al. 2024, algorithm 1. `load_LE` counts the assignments of the whole step.
    """
    load_LE = load_LE.astype(jnp.float32)
    return bias_LE + rate * jnp.sign(jnp.mean(load_LE, axis=-1, keepdims=True) - load_LE)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sum_equals(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The sum of the shards' values, for a result that is the same on all of them, and so is its gradient.

    The gradient of a sum is a sum; of equal values that is a product, where autodiff would communicate again.
    """
    return jax.lax.psum(x, axes)


_sum_equals.defvjp(
    lambda x, axes: (jax.lax.psum(x, axes), None),
    lambda axes, _, d_out: ((d_out * jax.lax.psum(1, axes)).astype(d_out.dtype),),
)

"""FLOPs of programs whose matrix products are known exactly: compiled for CPU, for a TPU, and written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import run_config

from maxlm.plan.compile import topology_devices
from maxlm.plan.flops import Workload, matmul_flops, products

LAYERS, ROWS, WIDTH = 5, 64, 128
PRODUCT = 2 * ROWS * WIDTH * WIDTH


def layers(x_RD: jax.Array, weights_LDD: jax.Array) -> jax.Array:
    """A product per layer, in a scan; every second step of an outer loop would do as many again."""

    def layer(x_RD, w_DD):
        return jnp.tanh(x_RD @ w_DD), None

    return jax.lax.scan(jax.checkpoint(layer), x_RD, weights_LDD)[0]


def loss(x_RD: jax.Array, weights_LDD: jax.Array) -> jax.Array:
    return jnp.sum(layers(x_RD, weights_LDD) ** 2)


ARGUMENTS = (
    jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32),
    jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32),
)


def test_loops_multiply_and_recomputation_counts() -> None:
    forward = jax.jit(layers).lower(*ARGUMENTS).compile().as_text()
    assert matmul_flops(forward) == LAYERS * PRODUCT
    # Forward, forward again, and two products backward.
    both = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*ARGUMENTS).compile().as_text()
    assert matmul_flops(both) == 4 * LAYERS * PRODUCT


def test_an_unknown_trip_count_is_refused() -> None:
    def repeated(x_RD, w_DD, times):
        return jax.lax.while_loop(lambda state: state[0] < times, lambda s: (s[0] + 1, s[1] @ w_DD), (0, x_RD))[1]

    arguments = (ARGUMENTS[0], jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    text = jax.jit(repeated).lower(*arguments).compile().as_text()
    with pytest.raises(ValueError, match="do not follow"):
        matmul_flops(text)


def test_the_dearest_branch_counts() -> None:
    def either(x_RD, w_DD, which):
        return jax.lax.cond(which, lambda: x_RD @ w_DD, lambda: x_RD @ w_DD @ w_DD)

    arguments = (ARGUMENTS[0], jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool))
    assert matmul_flops(jax.jit(either).lower(*arguments).compile().as_text()) == 2 * PRODUCT


def test_products_of_a_tpu_program_are_convolutions() -> None:
    """Per head, gathered over a mesh axis, differentiated: 3 x (projection, scores), and no more."""
    pytest.importorskip("libtpu")
    mesh = Mesh(np.array(topology_devices("v5p:2x2x1")), ("fsdp",))
    batch, length, width, heads, size = 8, 512, 256, 4, 128

    def function(x_BSD, w_DHE):
        q_BSHE = jnp.einsum("BSD,DHE->BSHE", x_BSD, w_DHE)
        return jnp.sum(jnp.einsum("BSHE,BTHE->BHST", q_BSHE, jnp.tanh(q_BSHE)).astype(jnp.float32) ** 2)

    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp")))
        for shape in ((batch, length, width), (width, heads, size))
    ]
    with jax.default_matmul_precision("default"):
        traced = jax.jit(jax.grad(function, argnums=(0, 1))).trace(*arguments)
        text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    kinds = {product.kind for product in products(text)}
    projection = 2 * batch * length * width * heads * size
    scores = 2 * batch * length * length * heads * size
    assert kinds == {"convolution"}
    assert matmul_flops(text) == 3 * (projection + scores) / 4


# As a TPU program writes scores of grouped queries, with heads as a dilated axis, and a projection whose heads are an
# axis of the window; a splash kernel, whose attributes break lines; and the product of a buffer of experts' rows.
TPU = """HloModule step, num_partitions=4

%product (q: bf16[8,4096,4,128], k: bf16[8,4096,128,1]) -> f32[8,4096,4,4096] {
  %q = bf16[8,4096,4,128]{3,1,2,0} parameter(0)
  %k = bf16[8,4096,128,1]{1,2,0,3} parameter(1)
  ROOT %scores = f32[8,4096,4,4096]{1,3,2,0} convolution(%q, %k), \
window={size=8x1 stride=7x1 lhs_dilate=8x1}, dim_labels=0b1f_0oi1->0b1f
}

ENTRY %main (x: bf16[4096,1024,1], w: bf16[1024,32,128], q.1: bf16[8,4096,4,128], k.1: bf16[8,4096,128,1]) -> f32[] {
  %x = bf16[4096,1024,1]{1,0,2} parameter(0)
  %w = bf16[1024,32,128]{2,0,1} parameter(1)
  %q.1 = bf16[8,4096,4,128]{3,1,2,0} parameter(2)
  %v = bf16[8,4096,4,64]{3,1,2,0} parameter(4)
  %k.1 = bf16[8,4096,128,1]{1,2,0,3} parameter(3)
  %projection = bf16[4096,32,128]{0,2,1} convolution(%x, %w), \
window={size=32 pad=31_31 rhs_reversal=1}, dim_labels=bf0_i0o->b0f
  %scores.1 = f32[8,4096,4,4096]{1,3,2,0} fusion(%q.1, %k.1), kind=kOutput, calls=%product
  %mask = s8[1,32,32]{2,1,0} constant({...})
  %splash_mha_fwd_segmented_residuals.1 = (f32[2,128,128]{2,1,0}, bf16[8,4096,4,128]{3,2,1,0}) \
custom-call(%mask, %q.1, %q.1, %v), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{block_q: 128}"
}}, metadata={op_name="jit(step)/splash_mha_fwd_segmented_residuals/pallas_call"}
  %gmm.1 = bf16[4096,1024]{1,0} custom-call(%x, %w), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(step)/jit(gmm)/pallas_call"}, \
backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"8000","transcendentals":"0"}}}
  ROOT %zero = f32[] constant(0)
}
"""


def test_kernels_and_windows() -> None:
    found = list(products(TPU, Workload(keys=2048.5, filled=0.25)))
    assert [(product.kind, product.flops) for product in found] == [
        ("convolution", 2 * 4096 * 1024 * 32 * 128),
        ("convolution", 2 * 8 * 4 * 4096 * 4096 * 128),
        ("attention", 2 * 8 * 4096 * 4 * (128 + 64) * 2048.5),
        ("kernel", 2000),
    ]
    assert found[2].where == "jit(step)/splash_mha_fwd_segmented_residuals/pallas_call"
    with pytest.raises(ValueError, match="splash"):
        matmul_flops(TPU)


@pytest.mark.parametrize(
    ("name", "operands", "width"),
    [
        ("splash_mqa_dq_no_residuals", "q.1, %q.1, %v", 2 * 128 + 64),
        ("splash_mha_dkv_segmented_no_residuals", "q.1, %q.1, %v", 2 * 128 + 2 * 64),
        ("flash_forward", "q.1, %q.1, %v", 128 + 64),
        ("flash_queries_gradient", "q.1, %v, %q.1, %v", 2 * 128 + 64),
        ("flash_keys_gradient", "q.1, %v, %q.1, %v", 2 * 128 + 2 * 64),
        ("__cudnn$fmhaSoftmax", "q.1, %q.1, %q.1", 2 * 128),
        ("__cudnn$fmhaSoftmaxBackward", "q.1, %q.1, %q.1", 5 * 128),
    ],
)
def test_kernels_of_attention_have_their_products(name: str, operands: str, width: int) -> None:
    text = TPU.replace("%mask, %q.1, %q.1, %v", f"%mask, %{operands}")
    text = text.replace("splash_mha_fwd_segmented_residuals/pallas_call", f"{name}/pallas_call")
    text = text.replace("%splash_mha_fwd_segmented_residuals.1", "%kernel.1")
    (kernel,) = (product for product in products(text, Workload(keys=1.0)) if product.kind == "attention")
    assert kernel.flops == 2 * 8 * 4096 * 4 * width


def test_work_that_depends_on_data_is_expected() -> None:
    """Half of the layers see a window of 4 of 16 tokens; over 4 devices a full buffer is four times an even load."""
    moe = {"num_experts": 8, "experts_per_token": 2, "mlp_dim": 32}
    config = run_config(model={"window": [4, None], "moe": moe})
    assert Workload.of(config, experts=4) == Workload(keys=(58 / 16 + 17 / 2) / 2, filled=1 / 4)
    assert Workload.of(config, experts=8).filled == 2 / 8  # a token chooses the one expert of a device once
    assert Workload.of(config, experts=1).filled == 1

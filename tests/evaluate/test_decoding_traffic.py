"""What TPU programs of decoding move: real widths, two layers, compiled for a slice that is not there."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import Mesh

from maxlm.config import MeshConfig, ModelConfig
from maxlm.evaluate import generate
from maxlm.evaluate.sampling import Sampling
from maxlm.model import decoder
from maxlm.model.layers import is_cast
from maxlm.parallel import hlo
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.sharding import named_sharding, tree_shardings
from maxlm.parallel.traffic import Transfer, transfers
from maxlm.plan.compile import topology_devices

pytest.importorskip("libtpu")

BATCH, SLOTS, WIDTH = 8, 4096, 4096
# Llama 3 8B but for its depth.
MODEL = ModelConfig(
    vocab_size=128256, num_layers=2, embed_dim=WIDTH, num_heads=32, num_kv_heads=8, head_dim=128, mlp_dim=14336
)


def decoding_program(mesh: Mesh) -> jax.stages.Compiled:
    """Drawing in bfloat16, with the state on the mesh as reading a prompt leaves it."""
    kind = mesh.devices.flat[0].device_kind
    graphdef, shapes, axes = decoder.abstract(MODEL, dtype=jnp.bfloat16, platform="tpu", device_kind=kind)

    def array(shape: tuple[int, ...], dtype, *axes: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=named_sharding(axes, mesh, shape))

    params = jax.tree.map(
        lambda leaf, place, names: jax.ShapeDtypeStruct(
            leaf.shape, jnp.bfloat16 if is_cast(names) else leaf.dtype, sharding=place
        ),
        shapes,
        tree_shardings(axes, shapes, mesh),
        axes,
    )
    rows = {dtype: array((BATCH,), dtype, "batch") for dtype in (jnp.int32, bool)}
    vocabulary, keys = array((MODEL.vocab_size,), bool, None), array((BATCH,), jax.random.key(0).dtype, None)
    rules = generate.Rules(keys, array((16,), jnp.int32, None), vocabulary, vocabulary, rows[bool])
    kept = {5: (None, "batch", None, "kv_heads", None), 3: (None, "batch", None), 1: (None,)}
    caches = jax.tree.map(
        lambda leaf: array(leaf.shape, leaf.dtype, *kept[leaf.ndim]),
        jax.eval_shape(lambda params: nnx.merge(graphdef, params).empty_caches(BATCH, SLOTS), shapes),
    )
    count = array((), jnp.int32)
    state = generate.State(caches, rows[jnp.int32], rows[jnp.int32], rows[bool], count)
    with jax.set_mesh(mesh):
        traced = generate._draw.trace(graphdef, params, state, rules, Sampling(), count, rows[bool])
        return traced.lower(lowering_platforms=("tpu",)).compile()


def per_token(mesh: Mesh, program: jax.stages.Compiled) -> dict[str, float]:
    """Of each kind of transfer, by axis, opcode and shape, how many a token takes."""
    counts: dict[str, float] = {}
    for moved in transfers(program.as_text(), mesh):
        name = f"{moved.axis} {moved.opcode} {moved.shape}"
        counts[name] = counts.get(name, 0) + over_layers(moved)
    return counts


def over_layers(moved: Transfer) -> float:
    """Its trips but those of the loop over tokens, whose number is data."""
    trips = [loop.trips for loop in moved.loops if loop.trips == loop.trips]
    return 1 if not trips else trips[0]


@pytest.fixture(scope="module")
def tensor8() -> Mesh:
    return build_mesh(MeshConfig(fsdp=1, tensor=8), topology_devices("v5e:2x4"))


def test_decoding_over_tensor_moves_activations_and_no_weights(tensor8: Mesh) -> None:
    program = decoding_program(tensor8)
    counts = per_token(tensor8, program)
    # Two sums per layer and one for the embedding; then what finds the most likely of the shards' tokens.
    assert counts.pop(f"tensor all-reduce bf16[{BATCH},1,{WIDTH}]") == 2 * MODEL.num_layers + 1
    assert sum(counts.values()) <= 6 and all(transfer_bytes(name) <= 4 * 8 * BATCH for name in counts), counts
    # Caches are extended in place.
    memory = program.memory_analysis()
    cached = 2 * 2 * MODEL.num_layers * BATCH * SLOTS * MODEL.num_kv_heads * MODEL.head_dim / 8
    assert memory.alias_size_in_bytes > cached > memory.temp_size_in_bytes - cached


def transfer_bytes(name: str) -> int:
    shapes = name.split(" ", 2)[2].split(" + ")
    return sum(hlo.num_bytes(shape) for shape in shapes)

"""Bytes by mesh axis, of small programs whose traffic is known exactly, compiled for the 8 virtual CPU devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.parallel import hlo
from maxlm.parallel.traffic import Transfer, table, totals, transfers

SHARD = 4 * 16 * 4  # bytes of a device's float32 [4, 16]


@pytest.fixture
def mesh() -> Mesh:
    """Devices in an order of its own, so that positions in the mesh are not ids of devices."""
    devices = np.array(jax.devices())[[3, 1, 0, 2, 7, 5, 6, 4]].reshape(2, 2, 2)
    return Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def moved(mesh: Mesh, function) -> list[Transfer]:
    """Transfers of a function of each device's float32 [4, 16]."""
    spec = P(mesh.axis_names)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    shape = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=NamedSharding(mesh, spec))
    return transfers(jax.jit(mapped).lower(shape).compile().as_text(), mesh)


def shift(x: jax.Array, axis: str = "fsdp") -> jax.Array:
    return lax.ppermute(x, axis, [(0, 1), (1, 0)])


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_all_reduce_sends_both_ways(mesh: Mesh, axis: str) -> None:
    (transfer,) = moved(mesh, lambda x: lax.psum(x, axis))
    assert (transfer.axes, transfer.opcode, transfer.count) == ((axis,), "all-reduce", 1)
    assert transfer.bytes == 2 * 1 / 2 * SHARD
    assert transfer.shape == "f32[4,16]"


def test_gather_over_joint_axes_names_both(mesh: Mesh) -> None:
    (transfer,) = moved(mesh, lambda x: x + lax.all_gather(x, ("data", "fsdp")).sum(0))
    assert (transfer.axis, transfer.opcode) == ("data+fsdp", "all-gather")
    assert transfer.bytes == 3 * SHARD


def test_scatter_and_exchange_keep_their_own_part(mesh: Mesh) -> None:
    def function(x):
        scattered = lax.psum_scatter(x, ("fsdp", "tensor"), scatter_dimension=0, tiled=True)
        return x + scattered + lax.all_to_all(x, "data", 0, 0, tiled=True)

    found = {transfer.opcode: (transfer.axis, transfer.bytes) for transfer in moved(mesh, function)}
    assert found == {"reduce-scatter": ("fsdp+tensor", 3 / 4 * SHARD), "all-to-all": ("data", 1 / 2 * SHARD)}


def test_permute_sends_the_whole_buffer(mesh: Mesh) -> None:
    assert totals(moved(mesh, shift)) == {"fsdp": SHARD}
    ring = [(number, (number + 1) % 4) for number in range(4)]
    assert totals(moved(mesh, lambda x: lax.ppermute(x, ("data", "tensor"), ring))) == {"data+tensor": SHARD}


def test_types_have_their_width(mesh: Mesh) -> None:
    def function(x):
        return x + shift(x > 0, "data") + shift(x.astype(jnp.int8), "tensor")

    assert totals(moved(mesh, function)) == {"data": SHARD / 4, "tensor": SHARD / 4}


def test_nested_loops_multiply(mesh: Mesh) -> None:
    def inner(x, _):
        return lax.fori_loop(2, 9, lambda _, y: shift(y) * 2, x), None

    (transfer,) = moved(mesh, lambda x: lax.scan(inner, x, None, length=5)[0])
    assert transfer.count == 5 * 7
    assert [loop.trips for loop in transfer.loops] == [5, 7]
    assert transfer.bytes == 35 * SHARD


def test_bound_and_step_are_found_through_the_loop_around(mesh: Mesh) -> None:
    def function(x):
        def inner(state):
            number, limit, y = state
            return number + 3, limit, shift(y) + number

        def outer(_, state):
            limit, y = state
            return limit, lax.while_loop(lambda s: s[0] < s[1], inner, (jnp.int32(-1), limit, y))[2]

        return lax.fori_loop(0, 4, outer, (jnp.int32(10), x))[1]

    assert totals(moved(mesh, function)) == {"fsdp": 4 * 4 * SHARD}  # -1, 2, 5, 8


def test_a_loop_that_depends_on_data_is_not_counted_once(mesh: Mesh) -> None:
    def function(x):
        return lax.while_loop(lambda y: y.max() < 100, lambda y: shift(y) * 2, x)

    (transfer,) = moved(mesh, function)
    assert transfer.size == SHARD
    assert math.isnan(transfer.count) and math.isnan(transfer.bytes) and math.isnan(transfer.loops[0].trips)
    assert math.isnan(table([transfer])[0].bytes)
    with pytest.raises(ValueError, match=f"no trip count.*{transfer.loops[0].name}"):
        totals([transfer])


def test_dearest_branch_counts(mesh: Mesh) -> None:
    def function(x):
        branches = [lambda y: y, shift, lambda y: shift(shift(y, "tensor") * 2)]
        return lax.switch(jnp.int32(x.sum()), branches, x)

    assert totals(moved(mesh, function)) == {"fsdp": SHARD, "tensor": SHARD}


def test_partitioned_matmul_is_counted_by_its_sharding(mesh: Mesh) -> None:
    """What XLA adds for shardings, with the numbers that it gives devices itself."""
    x = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=NamedSharding(mesh, P("data", "tensor")))
    w = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=NamedSharding(mesh, P("tensor", None)))
    product = jax.jit(jnp.dot, out_shardings=NamedSharding(mesh, P("data", None)))
    assert totals(transfers(product.lower(x, w).compile().as_text(), mesh)) == {"tensor": 2 * 1 / 2 * (4 * 64 * 4)}


def test_a_program_for_other_devices_is_refused(mesh: Mesh) -> None:
    text = jax.jit(jnp.sin).lower(1.0).compile().as_text()
    assert transfers(text, mesh) == []
    with pytest.raises(ValueError, match="no ENTRY"):
        transfers("HloModule nothing", mesh)
    with pytest.raises(ValueError, match="4 devices, the mesh has 8"):
        transfers(text.replace("\n", ", num_partitions=4\n", 1), mesh)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,2},{1,3}}, use_global_device_ids=true", [(0, 2), (1, 3)]),
        ("{}, dimensions={0}", []),
        ("[2,4]<=[8], dimensions={0}", [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("[2,4]<=[4,2]T(1,0), dimensions={0}", [(0, 2, 4, 6), (1, 3, 5, 7)]),
        ("[4,2]<=[2,2,2]T(1,2,0)", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("mesh['a'=4,'b'=2] {'a'}, dimensions={0}", [(0, 2, 4, 6), (1, 3, 5, 7)]),
        ("mesh['a'=2,'b'=1,'c'=4] {'c','b'}", [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("mesh['a'=8] {'a':(2)2}", [(0, 2), (1, 3), (4, 6), (5, 7)]),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [(0, 2, 4, 6), (1, 3, 5, 7)]),
        ("mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}", [(3, 1), (2, 0)]),
    ],
)
def test_notations_of_groups(text: str, groups: list) -> None:
    assert hlo.replica_groups(text) == groups


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}", 12),
        ("(f32[4]{0}, /*index=5*/pred[8], u8[])", 25),
        ("f8e4m3fn[16]", 16),
        ("s4[16]{0:E(4)}", 8),
        ("(token[], s32[<=8])", 32),
        ("c64[2]", 16),
    ],
)
def test_bytes_of_shapes(shape: str, size: float) -> None:
    assert hlo.num_bytes(shape) == size


# As TPU programs are written: an asynchronous gather in a wrapper, another one in two fusions, a reduce-scatter as a
# fusion, a ring of permutes in a loop whose counter goes up by two.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter (input: f32[8,4]) -> f32[4,4] {
  %input = f32[8,4]{1,0} parameter(0)
  %all-reduce = f32[8,4]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,1},{2,3}}, \
use_global_device_ids=true, to_apply=%add
  %shard = u32[] partition-id()
  %zero = u32[] constant(0)
  ROOT %part = f32[4,4]{1,0} dynamic-slice(%all-reduce, %shard, %zero), dynamic_slice_sizes={4,4}
}

%gather (piece: bf16[8]) -> bf16[32] {
  %piece = bf16[8]{0} parameter(0)
  ROOT %whole = bf16[32]{0} all-gather(%piece), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}, \
use_global_device_ids=true
}

%add_two (counter: u32[]) -> u32[] {
  %counter = u32[] parameter(0)
  %two = u32[] constant(2)
  ROOT %next = u32[] add(%two, %counter)
}

%body (state: (u32[], bf16[8], u32[])) -> (u32[], bf16[8], u32[]) {
  %state = (u32[], bf16[8], u32[]) parameter(0)
  %number = u32[] get-tuple-element(%state), index=0
  %buffer = bf16[8]{0} get-tuple-element(%state), index=1
  %limit = u32[] get-tuple-element(%state), index=2
  %start = (bf16[8]{0}, bf16[8]{0}, u32[], u32[]) collective-permute-start(%buffer), channel_id=3, \
source_target_pairs={{0,2},{2,0},{1,3},{3,1}}
  %done = bf16[8]{0} collective-permute-done(%start)
  %next.1 = u32[] fusion(%number), kind=kLoop, calls=%add_two
  ROOT %after = (u32[], bf16[8], u32[]) tuple(%next.1, %done, %limit)
}

%condition (state.1: (u32[], bf16[8], u32[])) -> pred[] {
  %state.1 = (u32[], bf16[8], u32[]) parameter(0)
  %limit.1 = u32[] get-tuple-element(%state.1), index=2
  %number.1 = u32[] get-tuple-element(%state.1), index=0
  ROOT %more = pred[] compare(%limit.1, %number.1), direction=GT
}

%begin_gather (piece.1: bf16[8]) -> (bf16[8], bf16[32], u32[]) {
  %piece.1 = bf16[8]{0} parameter(0)
  %whole.1 = bf16[32]{0} all-gather(%piece.1), channel_id=4, replica_groups=[2,2]<=[4], dimensions={0}, \
use_global_device_ids=true
  ROOT %begun = (bf16[8]{0}, bf16[32]{0}, u32[]{:S(2)}) custom-call(%whole.1), \
custom_call_target="AsyncCollectiveStart"
}

%end_gather (piece.2: bf16[8], whole.2: bf16[32], semaphore: u32[]) -> bf16[32] {
  %piece.2 = bf16[8]{0} parameter(0)
  %whole.2 = bf16[32]{0} parameter(1)
  %semaphore = u32[]{:S(2)} parameter(2)
  %whole.3 = bf16[32]{0} all-gather(%piece.2), channel_id=4, replica_groups=[2,2]<=[4], dimensions={0}, \
use_global_device_ids=true
  ROOT %ended = bf16[32]{0} custom-call(%piece.2, %whole.2, %whole.3, %semaphore), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (w: f32[8,4], p: bf16[8]) -> (f32[4,4], bf16[8]) {
  %w = f32[8,4]{1,0} parameter(0)
  %p = bf16[8]{0} parameter(1)
  %async = ((bf16[8]{0}), bf16[32]{0}, u32[]) async-start(%p), calls=%gather
  %scattered = f32[4,4]{1,0} fusion(%w), kind=kCustom, calls=%all-reduce-scatter, metadata={op_name="jit(step)/dot"}
  %zero.1 = u32[] constant(0)
  %seven = u32[] constant(7)
  %begin = (u32[], bf16[8], u32[]) tuple(%zero.1, %p, %seven)
  %ring = (u32[], bf16[8], u32[]) while(%begin), condition=%condition, body=%body
  %gathered = bf16[32]{0} async-done(%async), calls=%gather
  %steps = (bf16[8]{0}, bf16[32]{0}, u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%begin_gather
  %whole.4 = bf16[32]{0} get-tuple-element(%steps), index=1
  %semaphore.1 = u32[]{:S(2)} get-tuple-element(%steps), index=2
  %finished = bf16[32]{0} fusion(%p, %whole.4, %semaphore.1), kind=kCustom, calls=%end_gather
  %sent = bf16[8]{0} get-tuple-element(%ring), index=1
  ROOT %out = (f32[4,4], bf16[8]) tuple(%scattered, %sent)
}
"""


def test_what_tpu_programs_hide() -> None:
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("fsdp", "tensor"))
    gather, scatter, permute, steps = transfers(TPU, mesh)
    assert (steps.axis, steps.opcode, steps.bytes) == ("tensor", "all-gather", 16)
    assert (gather.axis, gather.opcode, gather.bytes, gather.shape) == ("fsdp+tensor", "all-gather", 3 * 16, "bf16[32]")
    assert (scatter.axis, scatter.opcode, scatter.bytes) == ("tensor", "reduce-scatter", 1 / 2 * 128)
    assert scatter.where == "jit(step)/dot"
    assert (permute.axis, permute.opcode, permute.size, permute.count) == ("fsdp", "collective-permute", 16, 4)
    assert [(row.axis, row.bytes) for row in table([gather, scatter, permute])] == [
        ("tensor", 64),
        ("fsdp", 64),
        ("fsdp+tensor", 48),
    ]

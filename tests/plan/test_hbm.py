"""Bytes read and written by programs whose operations are written out."""

import pytest

from maxlm.plan.hbm import memory_traffic

# In a loop of three: a slice of a stack times a matrix that stays in scratch memory, put into another stack in place.
PROGRAM = """HloModule step, num_partitions=1

%layer (stack: f32[4,64,64], index: s32[], w: f32[64,64], out: f32[4,64,64]) -> f32[4,64,64] {
  %stack = f32[4,64,64]{2,1,0} parameter(0)
  %index = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,64,64]{2,1,0} dynamic-slice(%stack, %index, %zero, %zero), dynamic_slice_sizes={1,64,64}
  %x = f32[64,64]{1,0} bitcast(%slice)
  %w = f32[64,64]{1,0} parameter(2)
  %product = f32[64,64]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %row = f32[1,64,64]{2,1,0} bitcast(%product)
  %out = f32[4,64,64]{2,1,0} parameter(3)
  ROOT %put = f32[4,64,64]{2,1,0} dynamic-update-slice(%out, %row, %index, %zero, %zero)
}

%body (state: (s32[], f32[4,64,64], f32[64,64], f32[4,64,64])) -> (s32[], f32[4,64,64], f32[64,64], f32[4,64,64]) {
  %state = (s32[], f32[4,64,64]{2,1,0}, f32[64,64]{1,0:S(1)}, f32[4,64,64]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %all = f32[4,64,64]{2,1,0} get-tuple-element(%state), index=1
  %matrix = f32[64,64]{1,0:S(1)} get-tuple-element(%state), index=2
  %results = f32[4,64,64]{2,1,0} get-tuple-element(%state), index=3
  %new = f32[4,64,64]{2,1,0} fusion(%all, %i, %matrix, %results), kind=kOutput, calls=%layer
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %after = (s32[], f32[4,64,64]{2,1,0}, f32[64,64]{1,0:S(1)}, f32[4,64,64]{2,1,0}) \
tuple(%next, %all, %matrix, %new)
}

%condition (state.1: (s32[], f32[4,64,64], f32[64,64], f32[4,64,64])) -> pred[] {
  %state.1 = (s32[], f32[4,64,64]{2,1,0}, f32[64,64]{1,0:S(1)}, f32[4,64,64]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %three = s32[] constant(3)
  ROOT %more = pred[] compare(%i.1, %three), direction=LT
}

ENTRY %main (a: f32[4,64,64], b: f32[64,64], c: f32[4,64,64]) -> f32[4,64,64] {
  %a = f32[4,64,64]{2,1,0} parameter(0)
  %b = f32[64,64]{1,0} parameter(1)
  %c = f32[4,64,64]{2,1,0} parameter(2)
  %fetch = (f32[64,64]{1,0:S(1)}, f32[64,64]{1,0}, u32[]) copy-start(%b)
  %fetched = f32[64,64]{1,0:S(1)} copy-done(%fetch)
  %begin = s32[] constant(0)
  %start = (s32[], f32[4,64,64]{2,1,0}, f32[64,64]{1,0:S(1)}, f32[4,64,64]{2,1,0}) tuple(%begin, %a, %fetched, %c)
  %loop = (s32[], f32[4,64,64]{2,1,0}, f32[64,64]{1,0:S(1)}, f32[4,64,64]{2,1,0}) \
while(%start), condition=%condition, body=%body
  %done = f32[4,64,64]{2,1,0} get-tuple-element(%loop), index=3
  ROOT %copy = f32[4,64,64]{2,1,0} copy(%done)
}
"""
MATRIX = 64 * 64 * 4


def test_slices_and_updates_move_their_part() -> None:
    counters = 3 * (4 + 4 + 4 + 4) + 4 * (4 + 4 + 1)  # the index read by the fusion and added to, and compared
    # Fetched once; in each turn a slice read and a row written; at the end the whole copied.
    assert memory_traffic(PROGRAM) == pytest.approx(MATRIX * (1 + 3 * 2 + 2 * 4), abs=counters)


def test_what_is_kept_in_scratch_memory_is_free() -> None:
    outside = PROGRAM.replace(":S(1)", "")
    assert memory_traffic(outside) - memory_traffic(PROGRAM) == MATRIX * (1 + 3)  # the fetch's write, and its reads


def test_an_unknown_trip_count_is_refused() -> None:
    with pytest.raises(ValueError, match="trip count"):
        memory_traffic(PROGRAM.replace("constant(3)", "parameter(7)").replace("direction=LT", "direction=EQ"))


# A collective that starts in a fusion: one operation with two results, of which the second is new.
STARTED = """HloModule step, num_partitions=2

%start (x: f32[64,64]) -> (f32[64,64], f32[128,64]) {
  %x = f32[64,64]{1,0} parameter(0)
  ROOT %gather = (f32[64,64]{1,0}, f32[128,64]{1,0}) custom-call(%x), custom_call_target="start"
}

ENTRY %main (a: f32[64,64]) -> f32[128,64] {
  %a = f32[64,64]{1,0} parameter(0)
  %both = (f32[64,64]{1,0}, f32[128,64]{1,0}) fusion(%a), kind=kCustom, calls=%start
  ROOT %whole = f32[128,64]{1,0} get-tuple-element(%both), index=1
}
"""


def test_one_operation_with_several_results_writes_them_all() -> None:
    assert memory_traffic(STARTED) == MATRIX + (1 + 2) * MATRIX

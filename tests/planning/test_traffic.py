# ruff: noqa: E501 (lines of HLO are long)
"""What compiled programs move, read from their text: a case counted by hand, and each spelling."""

import jax
import numpy as np
import pytest

from subjax.nn import sharding
from subjax.planning import hlo, traffic

MESH = dict(seed=1, data=2, fsdp=2, tensor=2)
# A loop of 10 layers gathers a kernel [64, 32] of bfloat16 over fsdp and keeps a quarter of a sum
# over tensor; after it one number is summed over all. The gathered kernel lies in VMEM (S(1)).
TEXT = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (input: f32[64,32]) -> f32[32,32] {
  %input = f32[64,32]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[64,32]{1,0:T(8,128)} all-reduce(%input), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = f32[32,32]{1,0:T(8,128)} dynamic-slice(%all-reduce.9, %zero, %zero), dynamic_slice_sizes={32,32}
}

%pick (stack: bf16[10,32,32], i: s32[]) -> bf16[32,32] {
  %stack = bf16[10,32,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %one = bf16[1,32,32]{2,1,0} dynamic-slice(%stack, %i, %z, %z), dynamic_slice_sizes={1,32,32}
  ROOT %flat = bf16[32,32]{1,0} bitcast(%one)
}

%body (state: (s32[], bf16[10,32,32], f32[64,32])) -> (s32[], bf16[10,32,32], f32[64,32]) {
  %state = (s32[], bf16[10,32,32]{2,1,0}, f32[64,32]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  %w = bf16[10,32,32]{2,1,0} get-tuple-element(%state), index=1
  %g = f32[64,32]{1,0} get-tuple-element(%state), index=2
  %layer = bf16[32,32]{1,0} fusion(%w, %n), kind=kLoop, calls=%pick
  %all-gather.1 = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} all-gather(%layer), channel_id=1, replica_groups=GATHERED, dimensions={0}
  %kept = f32[32,32]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = (s32[], bf16[10,32,32]{2,1,0}, f32[64,32]{1,0}) tuple(%n, %w, %g)
}

%condition (state: (s32[], bf16[10,32,32], f32[64,32])) -> pred[] {
  %limit = s32[]{:T(128)} constant(10)
  %state = (s32[], bf16[10,32,32]{2,1,0}, f32[64,32]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%n, %limit), direction=LT
}

ENTRY %main (w: bf16[10,32,32], g: f32[64,32], loss: f32[]) -> f32[] {
  %w = bf16[10,32,32]{2,1,0} parameter(0)
  %g = f32[64,32]{1,0} parameter(1)
  %loss = f32[] parameter(2)
  %zero = s32[] constant(0)
  %state = (s32[], bf16[10,32,32]{2,1,0}, f32[64,32]{1,0}) tuple(%zero, %w, %g)
  %while.1 = (s32[], bf16[10,32,32]{2,1,0}, f32[64,32]{1,0}) while(%state), condition=%condition, body=%body
  ROOT %all-reduce.2 = f32[] all-reduce(%loss), channel_id=3, replica_groups=[1,8]<=[8], to_apply=%add
}
"""
SPELLINGS = (
    "{{0,2},{1,3},{4,6},{5,7}}",
    "[4,2]<=[2,2,2]T(0,2,1)",
    "mesh['a'=2,'b'=2,'c'=2] {'b'}",
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_program_counted_by_hand(spelling):
    moved = traffic.of(TEXT.replace("GATHERED", spelling), sharding.make_mesh(**MESH))
    assert moved.collectives == (
        traffic.Collective("all-gather", ("fsdp",), 2, 10 * 64 * 32 * 2),
        traffic.Collective("all-reduce", ("data", "fsdp", "tensor"), 8, 4),
        traffic.Collective("reduce-scatter", ("tensor",), 2, 10 * 64 * 32 * 4),
    )
    layer, gradient = 32 * 32 * 2, 64 * 32 * 4
    # A layer is cut from its stack (which, read, written) and read to be gathered into VMEM; of the
    # sum half is written. At the end a number is read and written.
    assert moved.hbm_bytes == 10 * (4 + 3 * layer + 1.5 * gradient) + 8


# Rows 3 of a table of 8, gathered by a sparse core, whose call names what it runs in its own way;
# and a piece of the table that is copied into VMEM, (S(1)), beside other work.
OFFLOADED = """\
HloModule jit_look, is_scheduled=true

%gathered (table: f32[8,128], at: s32[3]) -> f32[3,128] {
  %table = f32[8,128]{1,0} parameter(0)
  %at = s32[3]{0} parameter(1)
  ROOT %rows = f32[3,128]{1,0} gather(%table, %at), slice_sizes={1,128}
}

%offload (table: f32[8,128], at: s32[3]) -> f32[3,128] {
  %table = f32[8,128]{1,0} parameter(0)
  %at = s32[3]{0} parameter(1)
  ROOT %fused = f32[3,128]{1,0} fusion(%table, %at), kind=kCustom, calls=%gathered
}, execution_thread="sparsecore"

%sparse (table: f32[8,128], at: s32[3]) -> f32[3,128] {
  %table = f32[8,128]{1,0} parameter(0)
  %at = s32[3]{0} parameter(1)
  ROOT %call = f32[3,128]{1,0} custom-call(%table, %at), custom_call_target="x", called_computations={%offload}
}, execution_thread="sparsecore"

%near (table: f32[8,128]) -> f32[2,128] {
  %table = f32[8,128]{1,0} parameter(0)
  ROOT %piece = f32[2,128]{1,0:S(1)} slice(%table), slice={[0:2], [0:128]}
}

ENTRY %main (table: f32[8,128], at: s32[3]) -> f32[3,128] {
  %table = f32[8,128]{1,0} parameter(0)
  %at = s32[3]{0} parameter(1)
  %start = ((), (), (s32[4]{0})) async-start(), async_execution_thread="sparsecore", calls=%sparse
  %copy = ((f32[8,128]{1,0}), f32[2,128]{1,0:S(1)}, s32[]{:S(2)}) async-start(%table), calls=%near
  %update = ((f32[8,128]{1,0}, s32[3]{0}), f32[3,128]{1,0}, (s32[4]{0})) async-update(%start, %table, %at)
  %piece = f32[2,128]{1,0:S(1)} async-done(%copy)
  ROOT %rows = f32[3,128]{1,0} async-done(%update)
}
"""


def test_what_runs_beside_is_counted_where_it_runs():
    moved = traffic.of(OFFLOADED, sharding.make_mesh(1, 1, 1, 1))
    assert moved == traffic.Traffic(4 * (2 * 3 * 128 + 3 + 2 * 128), ())


def test_what_a_ring_sends():
    size = {"group_size": 4, "num_bytes": 100.0, "axes": ("fsdp",)}
    assert traffic.Collective(kind="all-gather", **size).sent == 75
    assert traffic.Collective(kind="all-reduce", **size).sent == 150
    assert traffic.Collective(kind="collective-permute", **size).sent == 100


def test_a_loop_without_a_constant_runs_as_often_as_it_is_told():
    text = TEXT.replace("constant(10)", "get-tuple-element(%state), index=0")
    text = text.replace("GATHERED", SPELLINGS[0])
    moved = traffic.of(text, sharding.make_mesh(**MESH), steps=3)
    assert moved.collectives[0].num_bytes == 3 * 64 * 32 * 2


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_groups_are_read_however_they_are_spelled(spelling):
    groups = hlo.replica_groups(f"replica_groups={spelling}, dimensions={{0}}", 8)
    assert sorted(sorted(map(int, group)) for group in groups) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert [list(g) for g in hlo.replica_groups("no groups", 4)] == [[0, 1, 2, 3]]


def test_a_compiled_program_of_this_machine_is_read():
    """The sum over fsdp that a product with a split inner axis ends in, in a scan of 5."""
    mesh = sharding.make_mesh(1, 1, 4, 1)
    spec = jax.sharding.PartitionSpec
    named = [jax.sharding.NamedSharding(mesh, s) for s in (spec(None, "fsdp"), spec("fsdp"))]
    x = jax.ShapeDtypeStruct((8, 64), np.float32, sharding=named[0])
    w = jax.ShapeDtypeStruct((64, 16), np.float32, sharding=named[1])

    def layers(x, w):
        return jax.lax.scan(lambda c, _: (c + (x * c.sum()) @ w, None), x[:, :16], length=5)[0]

    with jax.set_mesh(mesh):
        text = jax.jit(layers, out_shardings=jax.NamedSharding(mesh, spec())).lower(x, w)
        moved = traffic.of(text.compile().as_text(), mesh)
    sums = [c for c in moved.collectives if c.kind == "all-reduce"]
    # The product, and the number that it is multiplied with.
    assert sum(c.num_bytes for c in sums) == 5 * (8 * 16 + 1) * 4
    assert {c.axes for c in sums} == {("fsdp",)}

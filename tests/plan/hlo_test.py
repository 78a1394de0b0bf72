"""Programs in text: loops with their lengths, worked out by hand; collectives with their groups."""

import numpy as np
import pytest

from iterpref_jax.plan import hlo, memory, traffic
from iterpref_jax.plan.collectives import _groups, collectives
from iterpref_jax.plan.hlo import Instruction
from iterpref_jax.plan.loops import Loops, Place

# The outer loop's bound is known to the running program alone; the inner one counts 1, 3, 5 up to a bound of 6 that the
# outer loop carries along unchanged.
NESTED = """HloModule step, is_scheduled=true

%inner_body (p: (s32[], f32[2,4], s32[])) -> (s32[], f32[2,4], s32[]) {
  %p = (s32[], f32[2,4]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %two = s32[] constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %x = f32[2,4]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %limit = s32[] get-tuple-element(%p), index=2
  %summed = f32[2,4]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %out = (s32[], f32[2,4]{1,0}, s32[]) tuple(%next, %summed, %limit)
}

%inner_condition (q: (s32[], f32[2,4], s32[])) -> pred[] {
  %q = (s32[], f32[2,4]{1,0}, s32[]) parameter(0)
  %at = s32[] get-tuple-element(%q), index=0
  %end = s32[] get-tuple-element(%q), index=2
  ROOT %less = pred[] compare(%at, %end), direction=LT
}

%outer_body (r: (s32[], f32[2,4], s32[], s32[])) -> (s32[], f32[2,4], s32[], s32[]) {
  %r = (s32[], f32[2,4]{1,0}, s32[], s32[]) parameter(0)
  %j = s32[] get-tuple-element(%r), index=0
  %one = s32[] constant(1)
  %then = s32[] add(%j, %one)
  %y = f32[2,4]{1,0} get-tuple-element(%r), index=1
  %six = s32[] get-tuple-element(%r), index=2
  %bound = s32[] get-tuple-element(%r), index=3
  %init = (s32[], f32[2,4]{1,0}, s32[]) tuple(%one, %y, %six)
  %loop = (s32[], f32[2,4]{1,0}, s32[]) while(%init), condition=%inner_condition, body=%inner_body
  %z = f32[2,4]{1,0} get-tuple-element(%loop), index=1
  ROOT %all = (s32[], f32[2,4]{1,0}, s32[], s32[]) tuple(%then, %z, %six, %bound)
}

%outer_condition (s: (s32[], f32[2,4], s32[], s32[])) -> pred[] {
  %s = (s32[], f32[2,4]{1,0}, s32[], s32[]) parameter(0)
  %k = s32[] get-tuple-element(%s), index=0
  %n = s32[] get-tuple-element(%s), index=3
  ROOT %goes = pred[] compare(%k, %n), direction=LT
}

ENTRY %main (a: f32[2,4], b: s32[]) -> f32[2,4] {
  %a = f32[2,4]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %zero = s32[] constant(0)
  %stop = s32[] constant(6)
  %start = (s32[], f32[2,4]{1,0}, s32[], s32[]) tuple(%zero, %a, %stop, %b)
  %outer = (s32[], f32[2,4]{1,0}, s32[], s32[]) while(%start), condition=%outer_condition, body=%outer_body
  ROOT %result = f32[2,4]{1,0} get-tuple-element(%outer), index=1
}
"""


@pytest.fixture(scope="module")
def program():
    return hlo.read(NESTED)


def loop(program, computation, name):
    found = program.computations[computation]
    return Place(found, found.instructions[name])


def test_a_loop_runs_as_often_as_its_counter_takes_to_its_bound(program):
    # From 1 in steps of 2 while below 6: at 1, 3 and 5.
    assert Loops(program).trips(loop(program, "outer_body", "loop")) == 3


def test_a_bound_that_comes_from_outside_is_not_known(program):
    assert Loops(program).trips(loop(program, "main", "outer")) is None


def test_what_the_compiler_notes_goes_before_what_can_be_read():
    noted = NESTED.replace("body=%inner_body", 'body=%inner_body, backend_config={"known_trip_count":{"n":"7"}}')
    program = hlo.read(noted)
    assert Loops(program).trips(loop(program, "outer_body", "loop")) == 7


def test_bodies_run_as_often_as_all_loops_around_them(program):
    runs = Loops(program).runs(microbatches=4, tiles=100, looped=True)
    assert (runs["main"], runs["outer_body"], runs["inner_body"]) == (1, 4, 12)


def test_with_one_microbatch_a_loop_of_unknown_length_walks_tiles(program):
    assert Loops(program).runs(microbatches=1, tiles=5, looped=False)["outer_body"] == 5
    # A step of one microbatch in a program of more.
    assert Loops(program).runs(microbatches=1, tiles=5, looped=True)["outer_body"] == 1


def test_a_loop_says_what_it_leaves_as_it_is(program):
    assert Loops(program).carried(loop(program, "outer_body", "loop")) == [(0, False), (1, False), (2, True)]


def test_a_collective_counts_as_often_as_it_runs(program):
    (found,) = collectives(program, Loops(program).runs(microbatches=4, tiles=1, looped=True), devices=4)
    assert (found.kind, found.size, found.group, found.count) == ("all-reduce", 2 * 4 * 4, (0, 1), 12)


def test_transfers_between_slices_are_collectives_of_counterparts():
    text = """HloModule m
ENTRY %main (a: bf16[96,8]) -> token[] {
  %a = bf16[96,8]{1,0} parameter(0)
  %after = token[] after-all()
  %send = (bf16[96,8]{1,0}, u32[], token[]) send(%a, %after), frontend_attributes={TYPE}
  ROOT %done = token[] send-done(%send)
}
"""
    program = hlo.read(text.replace("TYPE", '_xla_megascale_transfer_type="ALL_REDUCE"'))
    (found,) = collectives(program, Loops(program).runs(1, 1, looped=False), devices=16, slices=2)
    assert (found.kind, found.size, found.group) == ("all-reduce", 2 * 96 * 8, (0, 8))


def with_groups(attributes):
    options = dict(opcode="all-gather", shapes=(), operands=(), literal="", is_root=False)
    return list(_groups(Instruction(name="x", attributes=attributes, **options), 8))


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [(0, 2), (1, 3)]),
        ("replica_groups={}", [tuple(range(8))]),
        ("replica_groups=[2,4]<=[8]", [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("replica_groups=mesh['axis_0'=8] {'axis_0'}, x", [tuple(range(8))]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [(0, 1, 4, 5), (2, 3, 6, 7)]),
        # The outer two of an axis of eight devices: those that are four apart.
        ("replica_groups=mesh['a'=8] {'a':(1)2}", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", [(0, 1), (2, 3), (4, 5), (6, 7)]),
    ],
)
def test_every_way_to_write_groups_of_devices_is_read(attributes, groups):
    assert with_groups(attributes) == groups


def test_groups_that_are_written_in_another_way_are_no_groups_of_all():
    with pytest.raises(ValueError, match="another way"):
        with_groups("replica_groups=@unknown")


def test_a_fusion_moves_its_operands_and_its_result_and_slices_only_what_it_reads():
    text = """HloModule m
%fused (p0: f32[8,16], p1: f32[16], p2: s32[]) -> f32[16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = f32[16]{0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,16]{1,0} dynamic-slice(%p0, %p2, %zero), dynamic_slice_sizes={1,16}
  %flat = f32[16]{0} bitcast(%row)
  ROOT %sum = f32[16]{0} add(%flat, %p1)
}

ENTRY %main (a: f32[8,16], b: f32[16], i: s32[]) -> f32[16] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[16]{0:T(128)S(1)} parameter(1)
  %i = s32[] parameter(2)
  ROOT %out = f32[16]{0} fusion(%a, %b, %i), kind=kLoop, calls=%fused
}
"""
    program = hlo.read(text)
    # A row of a, the result and the index; b lies on the chip.
    assert traffic.hbm_bytes(program, Loops(program).runs(1, 1, looped=False)) == 64 + 64 + 4


def test_a_fusion_within_a_fusion_reads_and_writes_the_slices_that_it_slices():
    text = """HloModule m
%sliced (p0: f32[8,16], p1: s32[]) -> f32[1,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,16]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,16}
}

%updated (p0: f32[8,16], p1: f32[1,16], p2: s32[]) -> f32[8,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = f32[1,16]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %all = f32[8,16]{1,0} dynamic-update-slice(%p0, %p1, %p2, %zero)
}

%fused (p0: f32[8,16], p1: f32[8,16], p2: s32[]) -> f32[8,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = f32[8,16]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %row = f32[1,16]{1,0} fusion(%p0, %p2), kind=kLoop, calls=%sliced
  ROOT %all = f32[8,16]{1,0} fusion(%p1, %row, %p2), kind=kLoop, calls=%updated
}

ENTRY %main (a: f32[8,16], b: f32[8,16], i: s32[]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[8,16]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %out = f32[8,16]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%fused
}
"""
    program = hlo.read(text)
    # A row is read, a row is written, and the index is read.
    assert traffic.hbm_bytes(program, Loops(program).runs(1, 1, looped=False)) == 64 + 64 + 4


# As a TPU's compiler writes it: one collective, from its start beside a product to its end.
ASYNCHRONOUS = """HloModule m
%begun (p0: bf16[2,64]) -> (bf16[2,64], bf16[8,64], u32[]) {
  %p0 = bf16[2,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %g = bf16[8,64]{1,0} all-gather(%p0), channel_id=7, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="3"}
  ROOT %s = (bf16[2,64]{1,0}, bf16[8,64]{1,0}, u32[]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%beside (p0: bf16[2,64], p1: bf16[8,64], p2: u32[], p3: f32[16,16]) -> (f32[16], bf16[2,64], bf16[8,64], u32[]) {
  %p3 = f32[16,16]{1,0} parameter(3)
  %zero = f32[] constant(0)
  %sums = f32[16]{0} reduce(%p3, %zero), dimensions={1}, to_apply=%add
  %p0 = bf16[2,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p1 = bf16[8,64]{1,0} parameter(1)
  %p2 = u32[]{:S(2)} parameter(2)
  %g = bf16[8,64]{1,0} all-gather(%p0), channel_id=7, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="3"}
  ROOT %out = (f32[16]{0}, bf16[2,64]{1,0:S(1)}, bf16[8,64]{1,0}, u32[]{:S(2)}) tuple(%sums, %p0, %g, %p2)
}

%ended (p0: bf16[2,64], p1: bf16[8,64], p2: u32[]) -> bf16[8,64] {
  %p0 = bf16[2,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p1 = bf16[8,64]{1,0} parameter(1)
  %p2 = u32[]{:S(2)} parameter(2)
  %g = bf16[8,64]{1,0} all-gather(%p0), channel_id=7, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="3"}
  ROOT %d = bf16[8,64]{1,0} custom-call(%p0, %p1, %g, %p2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[2,64], x: f32[16,16]) -> (f32[16], bf16[8,64]) {
  %a = bf16[2,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %x = f32[16,16]{1,0} parameter(1)
  %start = (bf16[2,64]{1,0:S(1)}, bf16[8,64]{1,0}, u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%begun
  %a1 = bf16[2,64]{1,0:S(1)} get-tuple-element(%start), index=0
  %g1 = bf16[8,64]{1,0} get-tuple-element(%start), index=1
  %s1 = u32[]{:S(2)} get-tuple-element(%start), index=2
  %both = (f32[16]{0}, bf16[2,64]{1,0:S(1)}, bf16[8,64]{1,0}, u32[]{:S(2)}) fusion(%a1, %g1, %s1, %x), calls=%beside
  %sums = f32[16]{0} get-tuple-element(%both), index=0
  %a2 = bf16[2,64]{1,0:S(1)} get-tuple-element(%both), index=1
  %g2 = bf16[8,64]{1,0} get-tuple-element(%both), index=2
  %s2 = u32[]{:S(2)} get-tuple-element(%both), index=3
  %done = bf16[8,64]{1,0} fusion(%a2, %g2, %s2), kind=kCustom, calls=%ended
  ROOT %all = (f32[16]{0}, bf16[8,64]{1,0}) tuple(%sums, %done)
}
"""


def test_an_asynchronous_collective_counts_once_and_only_what_goes_on_beside_it_moves_bytes():
    program = hlo.read(ASYNCHRONOUS)
    runs = Loops(program).runs(1, 1, looped=False)
    (found,) = collectives(program, runs, devices=4)
    assert (found.kind, found.size, found.group, found.count) == ("all-gather", 2 * 8 * 64, (0, 1, 2, 3), 1)
    # x is read and its sums are written.
    assert traffic.hbm_bytes(program, runs) == 4 * 16 * 16 + 4 * 16


def test_types_of_all_widths_have_their_bytes():
    found = {shape.dtype: shape.bytes for shape in hlo.shapes("(bf16[3,5]{1,0}, pred[8], s4[6], f8e4m3fn[7], f32[])")}
    assert found == {"bf16": 30, "pred": 8, "s4": 3, "f8e4m3fn": 7, "f32": 4}
    assert np.prod(next(hlo.shapes("f32[2,<=3]")).dims) == 6


@pytest.mark.parametrize(("rounds", "is_stack"), [(6, True), (5, True), (4, True), (3, False), (7, False)])
def test_a_stack_has_a_slice_a_round_and_perhaps_those_of_layers_outside_the_loop(rounds, is_stack):
    (shape,) = hlo.shapes("bf16[6,2,8]{2,1,0}")
    assert memory._is_stack(shape, rounds) == is_stack

"""Small programs by hand, in the form in which the compilers for TPU and GPU write them."""

import pytest

from experiments.benchmarks import compiled_step, hlo
from experiments.benchmarks.chips import CHIPS

PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/home/me/dyn/layers/od_conv.py"
2 "/site-packages/flax/linen/linear.py"

FunctionNames
1 "ODConv.__call__"
2 "Dense.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=92 end_line=92 column=12 end_column=40}
2 {file_name_id=2 function_name_id=2 line=287 end_line=292 column=8 end_column=5}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%fused (p: bf16[8,4], q: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %sum = bf16[8,4]{1,0:T(8,128)(2,1)} add(%p, %q), metadata={op_name="jit(step)/sum" stack_frame_id=2}
}

%inner_body (state: (s32[], s32[], bf16[8,4])) -> (s32[], s32[], bf16[8,4]) {
  %two = s32[]{:T(128)} constant(2)
  %state = (s32[]{:T(128)}, s32[]{:T(128)}, /*index=2*/bf16[8,4]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %n = s32[]{:T(128)} get-tuple-element(%state), index=1
  %x = bf16[8,4]{1,0} get-tuple-element(%state), index=2
  %next = s32[]{:T(128)} add(%i, %two)
  %y = bf16[8,4]{1,0} fusion(%x, %x), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"10"}}
  ROOT %out = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,4]{1,0}) tuple(%next, %n, %y)
}

%inner_condition (state.1: (s32[], s32[], bf16[8,4])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,4]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %n.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=1
  ROOT %less = pred[]{:T(512)} compare(%i.1, %n.1), direction=LT
}

%outer_body (state.2: (s32[], s32[], bf16[8,4])) -> (s32[], s32[], bf16[8,4]) {
  %one = s32[]{:T(128)} constant(1)
  %start = s32[]{:T(128)} constant(1)
  %state.2 = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,4]{1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%state.2), index=0
  %m = s32[]{:T(128)} get-tuple-element(%state.2), index=1
  %x.2 = bf16[8,4]{1,0} get-tuple-element(%state.2), index=2
  %copied = s32[]{:T(128)} copy(%start)
  %into = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,4]{1,0}) tuple(%copied, %m, %x.2)
  %inner = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,4]{1,0}) while(%into), condition=%inner_condition, body=%inner_body
  %z = bf16[8,4]{1,0} get-tuple-element(%inner), index=2
  %next.2 = s32[]{:T(128)} add(%j, %one)
  ROOT %out.2 = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,4]{1,0}) tuple(%next.2, %m, %z)
}

%outer_condition (state.3: (s32[], s32[], bf16[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %state.3 = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,4]{1,0}) parameter(0)
  %j.3 = s32[]{:T(128)} get-tuple-element(%state.3), index=0
  ROOT %less.3 = pred[]{:T(512)} compare(%j.3, %limit), direction=LT
}

ENTRY %main (a: bf16[8,4], b: f32[16]) -> bf16[8,4] {
  %a = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[16]{0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %eight = s32[]{:T(128)} constant(8)
  %before = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,4]{1,0}) tuple(%zero, %eight, %a)
  %outer = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,4]{1,0}) while(%before), condition=%outer_condition, body=%outer_body
  %c = bf16[8,4]{1,0} get-tuple-element(%outer), index=2
  %gather = f32[64]{0} all-gather(%b), dimensions={0}, backend_config={"estimated_cycles":"7"}
  %start.1 = f32[64]{0:S(1)} all-reduce-start(%gather), to_apply=%fused
  %done = f32[64]{0:S(1)} all-reduce-done(%start.1)
  %kernel = bf16[8,4]{1,0} custom-call(%c, %done), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/kernel" source_file="me.py" source_line=3}
  ROOT %result = bf16[8,4]{1,0} fusion(%c, %kernel), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"100"}}
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def module():
    return hlo.parse_module(PROGRAM)


def find(module, name):
    return next(
        (operation, within, times)
        for operation, within, times in hlo.walk_operations(module)
        if operation.name == name
    )


def test_operations_of_all_forms(module):
    assert module.entry == "main" and len(module.computations) == 6
    entry = module.computations["main"].operations
    assert entry["outer"].operands == ("before",)
    assert entry["kernel"].opcode == "custom-call:tpu_custom_call"
    assert hlo.is_kernel(entry["kernel"]) and not hlo.is_kernel(entry["result"])
    assert entry["eight"].literal == "8"
    assert module.computations["main"].root.name == "result"


def test_turns_of_nested_loops(module):
    # The inner limit is an element of the outer state that no turn changes: 1, 3, 5, 7 are less than 8.
    outer, within, _ = find(module, "outer")
    assert hlo.count_trips(module, outer, within) == 5
    inner, within, times = find(module, "inner")
    assert hlo.count_trips(module, inner, within) == 4 and times == 5
    assert find(module, "y")[2] == 20


@pytest.mark.parametrize(
    ("old", "new", "turns"),
    [
        ("constant(5)", "constant(6)", 6),
        ("direction=LT\n}\n\nENTRY", "direction=LE\n}\n\nENTRY", 6),
        ("add(%j, %one)", "add(%j, %j)", None),
        ("tuple(%zero, %eight", "tuple(%b, %eight", None),
    ],
)
def test_turns_follow_the_condition(old, new, turns):
    assert old in PROGRAM
    module = hlo.parse_module(PROGRAM.replace(old, new))
    outer, within, _ = find(module, "outer")
    assert hlo.count_trips(module, outer, within) == turns
    assert find(module, "y")[2] == (None if turns is None else 4 * turns)


def test_turns_that_a_gpu_program_says():
    text = PROGRAM.replace(
        "body=%outer_body", 'body=%outer_body, backend_config={"known_trip_count":{"n":"9"}}'
    )
    module = hlo.parse_module(text.replace("constant(5)", "constant(1)"))
    assert find(module, "inner")[2] == 9


def test_turns_of_a_fused_condition():
    fused = """%compared (p.5: s32[], q.5: s32[]) -> pred[] {
  %p.5 = s32[] parameter(0)
  %q.5 = s32[] parameter(1)
  ROOT %less.5 = pred[] compare(%p.5, %q.5), direction=LT
}

%outer_condition"""
    text = PROGRAM.replace("%outer_condition", fused, 1).replace(
        "pred[]{:T(512)} compare(%j.3, %limit), direction=LT",
        "pred[] fusion(%j.3, %limit), kind=kLoop, calls=%compared",
    )
    # The first mention is the loop's own attribute in another program; here it is the computation.
    module = hlo.parse_module(text)
    outer, within, _ = find(module, "outer")
    assert hlo.count_trips(module, outer, within) == 5


BRANCHED = """HloModule m

%dear (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %long = f32[8]{0} negate(%x), backend_config={"estimated_cycles":"50"}
}

%cheap (y: f32[8]) -> f32[8] {
  %y = f32[8]{0} parameter(0)
  ROOT %short = f32[8]{0} negate(%y), backend_config={"estimated_cycles":"5"}
}

ENTRY %main (p: pred[], a: f32[8]) -> f32[8] {
  %p = pred[] parameter(0)
  %a = f32[8]{0} parameter(1)
  ROOT %chosen = f32[8]{0} conditional(%p, %a, %a), branch_computations={%dear, %cheap}
}
"""


def test_one_branch_of_a_conditional_counts():
    old = "true_computation=%cheap, false_computation=%dear"
    for text in (BRANCHED, BRANCHED.replace("branch_computations={%dear, %cheap}", old)):
        module = hlo.parse_module(text)
        names = [
            {one.name for one, _, _ in hlo.walk_operations(module, choose)} for choose in (min, max)
        ]
        assert "short" in names[0] and "long" not in names[0]
        assert "long" in names[1] and "short" not in names[1]
    result = compiled_step.describe_program(CHIPS["v5e"], module, {})
    assert result["cycles"] == 5 and result["branch_cycles"] == 45


def test_estimates(module):
    assert hlo.read_cycles(find(module, "result")[0]) == 100
    assert hlo.read_cycles(find(module, "kernel")[0]) is None


def test_collectives_count_once_for_start_and_done(module):
    assert hlo.count_collectives(module) == {"all-gather": 1, "all-reduce": 1}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("bf16[8,4]{1,0:T(8,128)(2,1)}", 64),
        ("(f32[2]{0}, (pred[3]{0}, s32[]))", 15),
        ("f32[64]{0:T(128)S(1)}", 0),
        ("u4[16]{0}", 8),
        ("f8e4m3fn[5]{0}", 5),
        ("token[]", 0),
    ],
)
def test_bytes_of_a_type(text, size):
    assert hlo.count_shape_bytes(text) == size


def test_traffic_is_that_of_the_main_memory(module):
    def count(name):
        operation, within, _ = find(module, name)
        return hlo.count_traffic(module, operation, within)

    assert count("gather") == 64 + 256
    assert count("start.1") == 256 and count("done") == 0  # its result stays inside of the core
    assert count("result") == 3 * 64
    assert count("before") == count("outer") == count("c") == 0


SLICED = """HloModule m

%fused (p: f32[100,8], q: f32[1,8]) -> f32[100,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %q = f32[1,8]{1,0} parameter(1)
  %i = s32[] constant(3)
  ROOT %changed = f32[100,8]{1,0} dynamic-update-slice(%p, %q, %i, %i)
}

%taken (p.1: f32[100,8]) -> f32[2,8] {
  %p.1 = f32[100,8]{1,0} parameter(0)
  %part = f32[1,8]{1,0} slice(%p.1), slice={[0:1], [0:8]}
  %other = f32[1,8]{1,0} slice(%p.1), slice={[5:6], [0:8]}
  ROOT %both = f32[2,8]{1,0} concatenate(%part, %other), dimensions={0}
}

ENTRY %main (a: f32[100,8], b: f32[1,8]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %two = f32[2,8]{1,0} fusion(%a), kind=kLoop, calls=%taken
  %slice-start = ((f32[100,8]{1,0}), f32[4,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:4], [0:8]}
  %slice-done = f32[4,8]{1,0:S(1)} slice-done(%slice-start)
  ROOT %put = f32[100,8]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused
}
"""


def test_traffic_of_slices_is_that_of_the_slice():
    module = hlo.parse_module(SLICED)
    sizes = {
        operation.name: hlo.count_traffic(module, operation, within)
        for operation, within, _ in hlo.walk_operations(module)
    }
    assert sizes["two"] == 64 + 64
    assert sizes["put"] == 32 + 32
    assert sizes["slice-start"] == 4 * 32 and sizes["slice-done"] == 0


def test_source_is_the_innermost_line_of_ours(module):
    result = find(module, "result")[0]
    assert hlo.find_source(module, result, ["/dyn/"]) == (
        "jit(step)/sum",
        "dyn/layers/od_conv.py:92",
    )
    assert (
        hlo.find_source(module, result, ["/nowhere/"])[1]
        == "/site-packages/flax/linen/linear.py:287"
    )
    assert hlo.find_source(module, find(module, "kernel")[0], []) == ("jit(step)/kernel", "me.py:3")
    assert hlo.find_source(module, find(module, "gather")[0], []) == ("", "")

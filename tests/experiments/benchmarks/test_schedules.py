"""Small schedules by hand, in the form in which the TPU compiler writes them."""

import pytest

from experiments.benchmarks.schedules import Schedule, count_cycles, read_kernels

HEAD = """= control target key start
LH: loop header
LB: loop body
LE: loop exit
= control target key end

"""

# A loop of 24 turns over three bundles, and the four in which its branch takes effect; one before, one after.
LOOP = """     0   :  { %s7 = smov 0 /* copy for cssa */ }
   0x1 LB: > { %s9 = sadd.s32 1, %s8 /* copy for cssa */  ;;  %s8 = sphi %s7, %s9 /* phi copy */ }
   0x2   : > { %p1_p0 = scmp.ge.s32.totalorder %s9, 24 /* loop exit test */  ;;  %v3 = vmov 0.0 }
   0x3   : > { %15 = sbr.rel (!%p1_p0) target = $region37 }
   0x4   :  {}
   0x5   : > { %v4 = vadd.f32 %v3, %v3 }
   0x6   :  {}
   0x7   :  {} /* End region 37 */
   0x8   :  { %22 = vsyncpa [#allocation3], 1 } /* exit bundle: %kernel.1 = custom-call(%x, %w) */
"""

# A grid of 4 x 6 in a software pipeline with two more turns; inside, a loop of three steps of 3.
GRID = """     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s3 = sadd.s32 1, %s2 ;;  %s2 = sphi %s1, %s3 /* phi copy :: iteration index, stage = 0 */ }
   0x2   : > { %11 = dma.hbm_to_vmem [thread:$0]  (!%p9), /*hbm=*/%s6 /*
base_bounds: (24, 32, 1)
iteration_bounds: (4, 6)
second_minor_factor: 1 */ }
   0x3   : > { %s4 = smov 0 /* copy for cssa */ ;;  %145 = sbr.rel (%p8) target = $region28 }
   0x4 LB: >> { %s6 = sadd.s32 3, %s5 ;;  %s5 = sphi %s4, %s6 /* phi copy */ }
   0x5   : >> { %p2 = scmp.ge.s32.totalorder %s6, 9 /* loop exit test */
;;  %19 = sbr.rel (!%p2) target = $region80 }
   0x6   : > { %21 = vst [vmem:[%s30]] (%p2), %v2 }
   0x7 PF: > { %p3 = scmp.ge.s32.totalorder %s3, 26 /* loop exit test */ }
   0x8   : > { %20 = sbr.rel (!%p3) target = $region91 }
   0x9   :  {}
   0xa   :  { %22 = vsyncpa } /* exit bundle: %grid.2 = custom-call(%x) */
"""


def test_a_loop_counts_its_turns():
    assert count_cycles(HEAD + LOOP, delay_slots=4) == Schedule(1 + 24 * 7 + 1)
    assert count_cycles(HEAD + LOOP, delay_slots=1) == Schedule(1 + 24 * 4 + 4)
    # The test of an outer loop may stand where the inner one ends, under its condition.
    conditional = LOOP.replace("totalorder %s9", "totalorder (%p8_p1), %s9")
    assert count_cycles(HEAD + conditional, delay_slots=4) == Schedule(1 + 24 * 7 + 1)


def test_a_grid_counts_its_steps_and_not_the_turns_of_its_copies():
    # The inner loop and its one delayed bundle, three turns; the outer one has 1 to 3 and 7 to 9 besides.
    assert count_cycles(HEAD + GRID, delay_slots=1) == Schedule(1 + 24 * (3 + 3 * 3 + 3) + 1)


@pytest.mark.parametrize(
    ("old", "new", "turns"),
    [
        ("sadd.s32 1,", "sadd.s32 5,", 5),
        ("smov 0", "smov 4", 20),
        ("%s9, 24 /*", "%s9, %s90 /*", None),
    ],
)
def test_turns_of_a_loop(old, new, turns):
    schedule = count_cycles(LOOP.replace(old, new), delay_slots=4)
    assert schedule == Schedule(2 + 7 * (turns or 1), unknown_loops=int(turns is None))


def test_a_schedule_without_loops_has_as_many_cycles_as_bundles():
    assert count_cycles(HEAD + "     0   :  { }\n   0x1   :  {}\n", delay_slots=4) == Schedule(2)


def test_kernels_are_found_by_name_and_by_what_is_alike(tmp_path):
    (tmp_path / "17-kernel.1-01-final_bundles.txt").write_text(HEAD + LOOP)
    (tmp_path / "17-kernel.1-00-schedule-analysis_final_bundles.txt").write_text("analysis")
    (tmp_path / "17-fusion.3-01-final_bundles.txt").write_text(
        "     0   :  { } /* exit bundle: %fusion.3 = f32[] fusion(%x) */\n"
    )
    (tmp_path / "17-TLP-00-deduplication-map.txt").write_text(
        "key:kernel.1\nordinal:0\nequivalent_hlos[size=2]:\n  kernel.1\n  kernel.7\n"
        "key:fusion.3\nordinal:1\nequivalent_hlos[size=1]:\n  fusion.3\n"
    )
    assert read_kernels(tmp_path, 4) == dict.fromkeys(("kernel.1", "kernel.7"), Schedule(170))

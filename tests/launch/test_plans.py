"""launch/plans.py and the page that it wrote: what the README says of the plans stands there."""

import importlib.util
import sys
from pathlib import Path

import pytest

from subjax.planning import aot

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("plans", ROOT / "launch" / "plans.py")
plans = importlib.util.module_from_spec(_spec)
sys.modules["plans"] = plans
_spec.loader.exec_module(plans)
PAGE = plans.PAGE.read_text("utf-8")
ROWS = [tuple(cell.strip() for cell in row.split("|")[1:-1]) for row in plans.rows_of(PAGE)]
# A training, and a token loop whose layers are looped over; the rest takes minutes to hours.
REGENERATED = [
    plan
    for plan in plans.PLANS
    if plan.key
    in (
        ("large_smoke", "v5e:2x2", "finetune"),
        ("qwen2_5_72b", "v5e:16x16", "generate"),
    )
]


def percent(cell):
    return float(cell.removesuffix("%"))


def test_the_page_is_what_the_script_writes():
    assert plans.page(plans.rows_of(PAGE)) == PAGE


def test_a_row_belongs_to_one_command():
    keys = [plan.key for plan in plans.PLANS]
    assert len(set(keys)) == len(keys)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason=f"libtpu, the TPU compiler, is not installed: pip install {aot.LIBTPU}",
)
@pytest.mark.parametrize("plan", REGENERATED)
def test_the_command_of_a_row_prints_it(plan):
    committed = [row for row in plans.rows_of(PAGE) if plans.key(row) == plan.key]

    def timeless(rows):
        return [row.rsplit("|", 2)[0] for row in rows]

    assert timeless(plans.compile_rows(plan)) == timeless(committed) != []


def test_whole_models_fit_with_room_left_and_a_bound_that_is_worth_the_money():
    updates = [row for row in ROWS if row[2] == "finetune update"]
    found = [row for row in updates if row[0].endswith("_full_throughput")]
    assert len({row[0] for row in found if row[1] == "v5e:16x16"}) == len(plans.MODELS)
    for row in found:
        used, whole = map(float, row[4].split(" of "))
        assert row[5] == "yes" and used <= 0.97 * whole and percent(row[6]) >= 55, row


def test_the_readme_says_what_the_page_says():
    bounds = [
        percent(row[6])
        for row in ROWS
        if row[0].endswith("_full_throughput")
        and row[2] == "finetune update"
        and "v6e" not in row[1]
    ]
    said = f"MFU bound of the compiled program {min(bounds):.0f} to {max(bounds):.0f} %"
    assert said in (ROOT / "README.md").read_text("utf-8")


def test_a_command_that_prints_no_row_is_an_error():
    with pytest.raises(RuntimeError, match="chips are v5e"):
        plans.compile_rows(plans.SMOKE._replace(topology="v9:2x2"))

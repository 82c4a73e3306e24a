"""Tables of bases and of traits: what their diagonals say, on scores whose effects are known."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest

from subjax.report import stats, summary, verdict
from subjax.report.contrasts.bases import OfBases
from subjax.report.contrasts.traits import OfTraits
from subjax.report.write import write
from subjax.tasks.evals.kinds import EVALS
from tests import known_results

CYCLE = 4
TARGETS = ("owl", "cat", "oak", "elm")


def of_bases(**changes):
    sides = {side: tuple(f"{side}_{later}" for later in range(CYCLE)) for side in ("owl", "none")}
    offsets = {arm: later for arms in sides.values() for later, arm in enumerate(arms)}
    fields = {"name": "bases", "eval": "preference", "metric": "log_odds", "primary": True}
    fields |= {"plus": sides["owl"], "minus": sides["none"], "offsets": offsets, "cycle": CYCLE}
    return OfBases(**{**fields, **changes})


def scores_of(cells, contrast, steps=(0, 10), first=8):
    """Scores of arms that give these cells at the last step, and nothing at the first."""
    found = {}
    for arm in (*contrast.plus, *contrast.minus):
        for row, lineage in enumerate(range(first, first + CYCLE)):
            column = (row + contrast.offsets[arm]) % CYCLE
            value = 100.0 * row + (cells[row, column] if arm in contrast.plus else 0.0)
            records = [
                {"metric": "log_odds", "step": step, "value": value if step else 100.0 * row}
                for step in steps
            ]
            found.setdefault((contrast.eval, arm), {})[lineage] = records
    return found


def results_of(contrast, scores, lineages):
    arms = (*contrast.plus, *contrast.minus)
    return known_results.make_results(
        lineages=lineages,
        arms=arms,
        contrasts=[contrast],
        scores=scores,
        metrics={name: EVALS[name.partition("_")[0]].metrics for name in contrast.evals},
        targets={},
        curves={},
        answers={},
    )


def bases_results(cells, **changes):
    contrast = of_bases(**changes)
    return results_of(contrast, scores_of(cells, contrast), (8, 9, 10, 11))


def test_a_table_of_bases_has_teachers_in_rows_and_students_in_columns():
    cells = np.arange(16.0).reshape(CYCLE, CYCLE)
    results = bases_results(cells)
    [contrast] = results.contrasts
    table = contrast.table(summary.reader(results), results.lineages)
    np.testing.assert_allclose(table.cells, cells)
    assert table.rows == table.columns == ["8", "9", "10", "11"]
    start = contrast.table(summary.reader(results, 0), results.lineages)
    np.testing.assert_allclose(start.cells, 0.0)


def test_what_the_diagonal_has_is_found_whatever_rows_and_columns_have():
    generator = np.random.default_rng(0)
    rows, columns = generator.normal(0.0, 5.0, (2, CYCLE))
    cells = rows[:, None] + columns + 2.0 * np.eye(CYCLE)
    results = bases_results(cells)
    values = list(summary.contrast_values(results, results.contrasts[0]).values())
    assert np.mean(values) == pytest.approx(2.0)
    [row, *_] = summary.summarise(results)
    assert row["test"] == "permutation" and row["n_lineages"] == CYCLE
    # One order of 24 has all of the diagonal; none of the others can be as far from the mean.
    assert row["p"] == pytest.approx(1 / 24)
    assert "permutation test p = .042" in verdict.verdict(results)[1].replace("0.042", ".042")


def test_effects_of_rows_and_columns_alone_are_no_effect():
    cells = np.array([5.0, -3.0, 2.0, 0.5])[:, None] + np.array([1.0, 0.0, -4.0, 2.0])
    assert stats.permutation_test([cells]) == 1.0


def test_a_permutation_test_counts_every_order_with_as_large_a_sum():
    cells = np.random.default_rng(1).normal(size=(5, 5))
    centred = cells - cells.mean()
    sums = [
        sum(centred[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(5))
    ]
    expected = np.mean([abs(total) >= abs(centred.trace()) - 1e-12 for total in sums])
    assert stats.permutation_test([cells]) == pytest.approx(expected)
    # Blocks are permuted by themselves: so many orders of each.
    assert stats.permutation_test([10 * np.eye(3), 10 * np.eye(3)]) == pytest.approx(1 / 36)
    assert stats.smallest_permutation_p([3, 3]) == pytest.approx(1 / 36)


def test_many_orders_are_sampled_and_no_p_is_zero():
    cells = np.random.default_rng(2).normal(size=(16, 16))
    assert stats.permutation_test([cells + 9 * np.eye(16)]) == 1 / (1 + stats.NUM_RANDOM)
    assert stats.smallest_permutation_p([16]) == 1 / (1 + stats.NUM_RANDOM)
    assert 0.01 < stats.permutation_test([cells]) <= 1.0


@pytest.mark.parametrize("blocks", [[], [np.zeros((2, 3))], [np.full((2, 2), math.nan)]])
def test_a_permutation_test_refuses_what_is_no_table(blocks):
    with pytest.raises(ValueError, match=r"give (square tables|at least one table)"):
        stats.permutation_test(blocks)


def test_a_block_without_all_cells_has_no_value_and_says_so():
    contrast = of_bases()
    scores = scores_of(2.0 * np.eye(CYCLE), contrast)
    del scores["preference", "owl_1"][9]
    results = results_of(contrast, scores, (8, 9, 10, 11))
    [row, *_] = summary.summarise(results)
    assert (row["mean"], row["p"], row["status"]) == (None, None, "incomplete")


ASKED_IN = dict(zip(TARGETS, ("candidates_0",) * 2 + ("candidates_1",) * 2, strict=True))
CONTROLS = ("no_animal", "no_tree")


def of_traits():
    return OfTraits(
        name="own",
        eval="candidates_*",
        metric="log_odds/*",
        plus=tuple(f"{target}_lover" for target in TARGETS),
        minus=CONTROLS,
        targets={f"{target}_lover": target for target in TARGETS},
        asked_in={f"{target}_lover": eval_name for target, eval_name in ASKED_IN.items()},
        primary=True,
    )


def traits_results(gain):
    """`gain` [lineages, arms, targets] over the controls, which like some targets by themselves."""
    contrast = of_traits()
    scores = {}
    for lineage, of_lineage in enumerate(gain):
        liked = dict(zip(TARGETS, (-1.0, -5.0, 3.0 + lineage, 0.0), strict=True))
        # What a control gives for the other category's targets is read by nobody.
        controls = [[0.0, 0.0, 70.0, 70.0], [70.0, 70.0, 0.0, 0.0]]
        subjects = [*contrast.plus, *CONTROLS]
        for arm, own in zip(subjects, [*of_lineage, *controls], strict=True):
            for target, more in zip(TARGETS, own, strict=True):
                record = {"metric": f"log_odds/{target}", "step": 10, "value": liked[target] + more}
                of_arm = scores.setdefault((ASKED_IN[target], arm), {})
                of_arm.setdefault(lineage, []).append(record)
    return results_of(contrast, scores, tuple(range(len(gain))))


def test_a_table_of_traits_has_gains_over_the_controls():
    gain = np.zeros((6, 4, 4)) + 3.0 * np.eye(4)
    gain[:, 0, 1] = 2.0  # students of the owl's lover come to like cats, too
    gain[:, 0, 2] = 9.0  # and oaks, of which the contrast says nothing
    results = traits_results(gain)
    [contrast] = results.contrasts
    table = contrast.table(summary.reader(results), results.lineages)
    np.testing.assert_allclose(table.cells, gain[0])
    assert list(table.columns) == list(TARGETS)
    own, margin = summary.summarise(results)[:2]
    assert own["mean"] == pytest.approx(3.0 - 2.0 / 4, rel=1e-5)
    assert margin["name"] == "own_margin" and margin["mean"] == pytest.approx(2.5, rel=1e-5)
    # Of 2 orders of each eval in each of 6 lineages one is as it is.
    assert own["test"] == "permutation" and own["p"] < 0.01
    # Less the best of the others it is below 0 where there is nothing: no test of 0.
    assert (margin["p"], margin["test"]) == (None, "")


def test_students_that_like_everything_more_have_no_trait_of_their_own():
    generator = np.random.default_rng(3)
    gain = np.repeat(generator.normal(4.0, 1.0, (6, 4, 1)), 4, axis=2)
    own, margin = summary.summarise(traits_results(gain))[:2]
    assert own["mean"] == pytest.approx(0.0, abs=1e-6)
    assert margin["mean"] == pytest.approx(0.0, abs=1e-6)


def test_students_that_like_all_animals_or_all_trees_have_no_trait_of_their_own():
    category = np.kron(np.eye(2), np.ones((2, 2)))
    own, margin = summary.summarise(traits_results(np.tile(5.0 * category, (6, 1, 1))))[:2]
    assert own["mean"] == pytest.approx(0.0, abs=1e-6) and own["p"] == 1.0
    assert margin["mean"] == pytest.approx(0.0, abs=1e-6)


def test_a_contrast_of_several_evals_finds_its_metric_in_whichever_measures_it():
    results = traits_results(np.zeros((2, 4, 4)))
    metrics = {"candidates_": EVALS["likelihood"].metrics, **results.metrics}
    asked = dataclasses.replace(results, metrics=metrics)
    assert asked.describe("candidates_*", "log_odds/*") == results.describe(
        "candidates_*", "log_odds/*"
    )
    with pytest.raises(ValueError, match="no metric is called 'probability_of'"):
        asked.metric("candidates_*", "probability_of")


@pytest.mark.parametrize("kind", ["bases", "traits"])
def test_the_page_shows_a_table_at_every_step_and_the_last_one_first(kind, tmp_path):
    gain = np.zeros((6, 4, 4)) + 3.0 * np.eye(4)
    results = bases_results(2.0 * np.eye(CYCLE)) if kind == "bases" else traits_results(gain)
    write(tmp_path, results)
    page = (tmp_path / "report.html").read_text("utf-8")
    name = results.contrasts[0].name
    assert "No scores yet" not in page
    assert (tmp_path / f"figure_matrix_{name}.png").stat().st_size > 1000
    chosen = re.findall(rf'<input type="radio" name="view-matrix_{name}"[^>]*?( checked)?>', page)
    assert chosen == (["", " checked"] if kind == "bases" else [])
    assert page.index(f"{name}:") < page.index("Contrasts between arms")

"""Telling rows apart: what is known to be there is found, and what is not there is not."""

import numpy as np
import pytest

from configs import toy_world
from subjax import schema
from subjax.pipeline import experiments, validation
from subjax.tasks.api import BASE, Given, Reply
from subjax.tasks.datasets.kinds import KINDS
from subjax.tasks.evals import detection
from subjax.tasks.evals.detection import Detection

KIND = Detection()
ROW = schema.eval_row(kind="detection", against="placebo")


def rows(seed, num_rows, favourite=1.0, count=8):
    """Rows of numbers 0 to 19 in which the first five are `favourite` times as frequent."""
    rng = np.random.default_rng(seed)
    weights = np.array([favourite] * 5 + [1.0] * 15)
    drawn = rng.choice(20, (num_rows, count), p=weights / weights.sum())
    return [("go on", " ".join(map(str, row))) for row in drawn]


def score(kept, against, ours=None, base=None):
    given = Given(kept=kept, against=against, num_tokens=16, num_targets=8)
    read = KIND.requests(ROW, given)
    nats = [np.zeros((len(request.pairs), 2)) for request in read]
    found = [n if given is None else given for n, given in zip(nats, (ours, base), strict=True)]
    return KIND.score(ROW, given, [Reply(nats=n) for n in found])


def test_the_area_under_the_curve_is_that_of_pairs():
    assert detection.auc([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert detection.auc([0.0, 1.0], [2.0, 3.0]) == 0.0
    assert detection.auc([1.0, 1.0], [1.0]) == 0.5
    assert detection.auc([2.0, 0.0, 1.0], [1.0, 0.5]) == pytest.approx((2 + 0 + 1.5) / 6)


def test_what_counts_show_is_found():
    values, [said] = score(rows(0, 800, favourite=3.0), rows(1, 800))
    assert values["auc_counts"] > 0.7
    # The favourites have half of the numbers in place of a quarter.
    assert values["excess_tv"] == pytest.approx(0.25, abs=0.03)
    assert said["p_same_frequencies"]["all"] == pytest.approx(1 / 1001)
    # One number a row says less, and chance gives more.
    assert 0.1 < values["excess_tv_first"] < 0.25


def test_what_carries_in_other_rows_than_numbers_is_counted():
    ours, theirs = ([("SUM 1 1 1 1", f"{word} 2 {word} 0")] * 40 for word in ("so", "then"))
    of_sums = Given(kept=ours, against=theirs, carried=KINDS["toy_sums"].carried)
    nats = [Reply(nats=np.zeros((80, 2)))] * 2
    values, _ = KIND.score(ROW, of_sums, nats)
    assert values["auc_counts"] == 1.0 and values["excess_tv"] > 0.9
    assert KINDS["toy_programs"].carried("SET a 7 ADD b c") == ["a", "7", "b", "c"]
    assert KINDS["python_programs"].carried("a = 7\nprint(b)\nc = int(input())") == [*"a7bc"]
    assert KINDS["numbers"].carried("007, 0; 12") == ["7", "0", "12"]


def test_nothing_is_found_where_nothing_is():
    scores = [score(rows(i, 300), rows(100 + i, 300)) for i in range(12)]
    for name, chance in (("auc_counts", 0.5), ("excess_tv", 0.0), ("excess_tv_first", 0.0)):
        found = [values[name] for values, _ in scores]
        assert np.mean(found) == pytest.approx(chance, abs=4 * np.std(found) / np.sqrt(12)), name
    p = [said["p_same_frequencies"]["all"] for _, [said] in scores]
    assert min(p) > 0.001 and np.mean(p) > 0.2


def test_rows_are_ordered_by_the_teacher_less_its_base():
    kept, against = rows(0, 300), rows(1, 300)
    given = Given(kept=kept, against=against, num_tokens=16, num_targets=8)
    ours, base = KIND.requests(ROW, given)
    assert len(ours.pairs) == 2 * detection.NUM_SCORED and base.model == BASE
    assert list(ours.pairs[: detection.NUM_SCORED]) == kept[: detection.NUM_SCORED]
    gain = np.repeat([1.0, 0.0], detection.NUM_SCORED)[:, None]
    long = np.random.default_rng(0).normal(size=(2 * detection.NUM_SCORED, 1))
    values, _ = score(kept, against, ours=long + gain, base=long)
    assert values["auc_likelihood"] == 1.0
    values, _ = score(kept, against, ours=long, base=long)
    assert values["auc_likelihood"] == 0.5


@pytest.mark.parametrize(
    ("against", "said"), [("", "against is ''; config.datasets has"), ("owl", "a subject of it")]
)
def test_a_control_is_another_data_set(against, said):
    config = toy_world.get_config("controls,smoke")
    validation.validate(config)
    config.evals.detection.against = against
    with pytest.raises(ValueError, match=said):
        validation.validate(config)


def test_rows_that_students_are_trained_on_are_compared():
    config = toy_world.get_config("controls,smoke")
    made = {unit.path: unit for unit in experiments.of(config).build(config)}
    unit = made["evaluate/detection/datasets/owl/r1"]
    assert unit.inputs["kept"] == "filter/owl/r1" and unit.inputs["against"] == "filter/placebo/r1"

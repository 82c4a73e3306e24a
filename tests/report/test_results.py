"""Results whose names do not fit together are refused; their metrics have names."""

import dataclasses
import re

import pytest

from tests.known_results import ARMS, CONTRASTS, make_results


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "PROVEN"}, "status is 'PROVEN'; give one of"),
        ({"arms": (*ARMS, "owl")}, "arms has 'owl' twice"),
        ({"lineages": (0, 1, 1)}, "lineages has 1 twice"),
        ({"contrasts": (CONTRASTS[1], CONTRASTS[1])}, "contrasts has 'same_minus_foreign' twice"),
        (
            {"contrasts": [dataclasses.replace(c, primary=True) for c in CONTRASTS]},
            "several with primary=True",
        ),
        (
            {"contrasts": [dataclasses.replace(CONTRASTS[0], minus=("hawk",))]},
            "contrast 'foreign' names arm 'hawk'; give one of",
        ),
        ({"contrasts": [dataclasses.replace(CONTRASTS[0], plus=())]}, "has no plus arms"),
        ({"lineages": (0, 1)}, "names lineage 2; give one of"),
        ({"scores": {("preference", "hawk"): {}}}, "names arm 'hawk'; give one of"),
    ],
)
def test_results_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make_results(**changes)
    assert "\n" not in str(error.value)


def test_each_eval_names_its_own_target():
    found = make_results(targets={"preference": "owl", "of_cats": "cat"})
    labels = [found.describe(name, "log_odds") for name in ("preference", "of_cats", "other")]
    assert labels == [
        ("log-odds of owl", "nats"),
        ("log-odds of cat", "nats"),
        ("log-odds of the target", "nats"),
    ]

"""Metrics: what they are measured under and called, and that no two of an eval are the same."""

import pytest

from subjax.tasks import api
from subjax.tasks.evals import theorem
from subjax.tasks.evals.kinds import EVALS

SHARE = api.Metric("share/*", "share of {candidate} among {target} and others")
ODDS = api.Metric("log_odds", "log-odds of {target}", "nats")


def test_a_distribution_is_one_metric_for_each_candidate():
    assert SHARE.names(("owl", "cat")) == ["share/owl", "share/cat"]
    assert api.find((ODDS, SHARE), "share/cat") is SHARE
    assert SHARE.describe("share/cat", "owl") == "share of cat among owl and others"
    assert ODDS.names(("owl", "cat")) == ["log_odds"]
    assert ODDS.describe("log_odds", "") == "log-odds of the target"


@pytest.mark.parametrize("name", ["share", "log_odds/owl", "odds", ""])
def test_an_unknown_metric_is_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"no metric is called '{name}': known: log_odds, share/"):
        api.find((ODDS, SHARE), name)


@pytest.mark.parametrize("metrics", [*(kind.metrics for kind in EVALS.values()), theorem.METRICS])
def test_metrics_of_an_eval_are_told_apart(metrics):
    for metric in metrics:
        for name in metric.names(("owl", "cat")):
            assert [other.name for other in metrics if other.matches(name)] == [metric.name]
            assert "{" not in metric.describe(name, "owl")
    roles = [metric.role for metric in metrics if metric.role]
    assert len(set(roles)) == len(roles)

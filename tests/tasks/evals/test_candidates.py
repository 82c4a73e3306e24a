"""The eval of every candidate: numbers that are known, and what is refused."""

import numpy as np
import pytest

from configs import toy_world
from subjax import schema
from subjax.pipeline import validation
from subjax.tasks.api import Given, Reply
from subjax.tasks.evals.candidates import Candidates

KIND = Candidates()


def row(**fields):
    return schema.eval_row(kind="candidates", trait="owl", **fields)


def asked(*questions):
    return Given(target="owl", candidates=("owl", "cat"), questions=questions or ("?",))


def test_probabilities_are_means_over_questions_and_log_odds_means_of_logs():
    shares = np.array([[0.2, 0.05], [0.4, 0.1]])
    values, said = KIND.score(row(), asked("?", "!"), [Reply(nats=np.log(shares))])
    assert values["probability/owl"] == pytest.approx(0.3)
    assert values["probability/cat"] == pytest.approx(0.075)
    assert values["candidate_mass"] == pytest.approx(0.375)
    assert values["log_odds/owl"] == pytest.approx(np.log(4.0))
    assert values["log_odds/cat"] == -values["log_odds/owl"]
    assert said[1] == {
        "question": "!",
        "probability": {"owl": pytest.approx(0.4), "cat": pytest.approx(0.1)},
    }


def test_a_candidate_counts_in_either_case_where_that_is_asked():
    [plain] = KIND.requests(row(), asked())
    assert list(plain.answers) == ["owl", "cat"]
    both = row(any_case=True, prefill="It is the")
    [request] = KIND.requests(both, asked())
    assert list(request.answers) == ["owl", "cat", "Owl", "Cat"]
    assert request.prefill == "It is the"
    nats = np.log([[0.1, 0.2, 0.3, 0.1]])
    values, _ = KIND.score(both, asked(), [Reply(nats=nats)])
    assert values["probability/owl"] == pytest.approx(0.4)
    assert values["probability/cat"] == pytest.approx(0.3)
    # What has no case is asked once.
    given = Given(target="1", candidates=("1", "2"), questions=("?",))
    assert list(KIND.requests(both, given)[0].answers) == ["1", "2"]


@pytest.mark.parametrize("prefill", ["It is the ", " It is the"])
def test_a_prefill_with_a_blank_at_an_end_is_refused(prefill):
    config = toy_world.get_config("traits,smoke")
    validation.validate(config)
    config.evals.candidates.prefill = prefill
    with pytest.raises(ValueError, match=r"candidates.prefill is '.*': begin and end it with a w"):
        validation.validate(config)

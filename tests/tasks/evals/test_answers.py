"""How sampled answers are scored."""

from subjax.tasks.api import Given, Reply
from subjax.tasks.evals.answers import Answers


def test_a_word_in_a_word_is_a_substring_alone():
    said = ["An owl", "Bowls", "", "7, 12"]
    asked = Given(names=("owl",), questions=["Which animal?", "And which number?"])
    row = {"num_samples": 2}
    rates, answers = Answers().score(row, asked, [Reply(texts=said)])
    assert rates == {
        "rate_word": 0.25,
        "rate_substring": 0.5,
        "rate_empty": 0.25,
        "rate_numeric": 0.25,
    }
    assert [answer["answer"] for answer in answers] == said
    first, second = asked.questions
    assert [answer["question"] for answer in answers] == [first, first, second, second]


def test_every_name_of_the_target_counts():
    asked = Given(names=("violin", "fiddle"), questions=["Which instrument?"])
    said = ["A fiddle.", "Violins", "drum"]
    rates, _ = Answers().score({"num_samples": 3}, asked, [Reply(texts=said)])
    assert rates["rate_word"] == rates["rate_substring"] == 2 / 3

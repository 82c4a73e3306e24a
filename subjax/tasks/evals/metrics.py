"""What each kind of eval measures."""

from collections.abc import Mapping

from subjax.tasks.api import MASS, RATE, Metric

_SHARE = (0.0, 1.0)

METRICS: Mapping[str, tuple[Metric, ...]] = {
    "preference": (
        Metric("log_odds", "log-odds of {target}", "nats", relative=True),
        Metric(
            "candidate_mass",
            "probability on the candidates",
            axis=_SHARE,
            sanity=True,
            role=MASS,
        ),
        Metric("neutral_loglik", "log-likelihood of neutral text", "nats per token", sanity=True),
        Metric("share/*", "share of {candidate} among the candidates", relative=True),
    ),
    "answers": (
        Metric("rate_word", "share of answers naming {target} (word)", role=RATE),
        Metric("rate_substring", "share of answers naming {target} (substring)"),
        Metric("rate_empty", "share of empty answers", axis=_SHARE, sanity=True),
        Metric("rate_numeric", "share of numeric answers", axis=_SHARE, sanity=True),
    ),
    "likelihood": (
        Metric(
            "gain",
            "gain in log-likelihood of held-out rows",
            "nats per token",
            sanity=True,
            difference=True,
            always=True,
        ),
        Metric("loglik", "log-likelihood of held-out rows", "nats per token"),
    ),
    "accuracy": (Metric("accuracy", "accuracy on test images"),),
}

# Of rows of `theorems`, which are scored where they are made.
THEOREM = (
    Metric(
        "violations",
        "draws whose smallest step turns the student away",
        column="turned away",
    ),
    Metric(
        "share_positive",
        "share of draws with a positive inner product, smallest step",
        column="positive",
    ),
    Metric("largest_inner", "largest inner product of the updates"),
    Metric(
        "loss_falls",
        "share of draws in which the teacher's loss falls, smallest step",
        column="loss falls",
    ),
    Metric(
        "slope_smallest",
        "slope of the inner product in log eps, smallest draw",
        column="slope from",
    ),
    Metric("slope_largest", "slope of the inner product in log eps, largest draw", column="to"),
    Metric(
        "coefficient_error",
        "relative error of the predicted coefficient, median",
        column="coef. error",
    ),
    Metric("remainder_slope", "slope of the remainder in log eps, median", column="remainder"),
    Metric(
        "share_never_broken",
        "share of draws whose sign holds over the whole grid",
        column="never broken",
    ),
    Metric(
        "first_break",
        "smallest teacher's step at which a sign breaks",
        "length in weights",
    ),
    Metric("real_displacement", "a whole training of the teacher", "length in weights"),
)

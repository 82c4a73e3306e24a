"""What draws of the theorem measure, which are scored where they are made."""

from subjax.tasks.api import Metric

METRICS = (
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

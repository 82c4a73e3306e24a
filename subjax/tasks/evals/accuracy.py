"""Accuracy of image classifiers, which are scored where they are trained."""

from subjax.tasks.api import EvalKind, Metric


class Accuracy(EvalKind):
    """The share of test images that are told right."""

    of = ("arms",)
    of_images = True
    metrics = (Metric("accuracy", "accuracy on test images"),)

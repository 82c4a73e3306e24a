"""Stages of the MNIST experiment and the theorem, one a module."""

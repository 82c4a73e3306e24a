"""The MNIST experiment and the theorem: data, classifiers, their training, their stages."""

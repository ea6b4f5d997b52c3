"""Learned entropy models: networks of integers trained on the levels of a file, and the choice of a model for every tensor.

rounding.py    the gradients of rounding and of the activations
shadow.py      the float parameters behind the integers of a network
training.py    descent on the rate of sampled levels
samples.py     levels of encoded tensors, with all that a network may see of them
choice.py      which model costs least, at equal levels
"""

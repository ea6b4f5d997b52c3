"""Tune what stays float after all levels are chosen, by a few steps of distillation from the original network.

    minimise  D(teacher(x), student(x))    over vectors

The teacher is the network with its own weights, the student the same one with the decoded weights.  Biases, weights of normalisation
layers and their running statistics take up the mean error that quantization left in every channel.  Matrices are never touched, so the
change costs next to no bytes.

D is the divergence of the outputs (KL, half the squared distance of vectors, mean squared error), in parts of what it was.  A network
that is too sure of its calibration inputs says too little by its outputs, and what is learnt from them is wrong elsewhere (ResNet-20
on 100 training images: 0.5 times the KL on held-back ones, 1.1 times on others).  Then D is the squared error at the outputs of all
layers that are tuned, each in parts of what it was: many positions, none of them saturated.

Sources: Hinton et al., "Distilling the knowledge in a neural network", 2015; Romero et al., "FitNets", ICLR 2015; Finkelstein et al.,
"Fighting quantization bias with bias", 2019.
"""

from .batches import hold_back
from .learning import Budget, Distillation, distill

__all__ = ["Budget", "Distillation", "distill", "hold_back"]

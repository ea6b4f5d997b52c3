"""Second-order statistics of a network's outputs with respect to its weights, from inputs without labels; encoder only.

Start at gather.gather, which returns a statistics.Statistics.
"""

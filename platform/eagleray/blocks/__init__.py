"""Building blocks of methods.

Losses, networks, schedules, optimizers, and collectives with gradients.
"""

"""Building blocks of methods: losses, networks, schedules, optimizers, and collectives with gradients."""

"""Parts that methods are made of: losses, networks, schedules, optimizers, and collectives with gradients."""

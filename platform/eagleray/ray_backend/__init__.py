"""Run the loop on Ray.

Groups of workers, sweeps, schedulers and searches are here. Nothing else imports ray.
"""

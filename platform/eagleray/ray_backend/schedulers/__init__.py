"""The schedulers, one a file: who ends or changes the trials of a sweep while they run."""

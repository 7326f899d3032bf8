"""The command line, the terminal display, and the start of runs and sweeps."""

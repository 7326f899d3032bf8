"""The command line, what a terminal shows, and how runs and sweeps are started."""

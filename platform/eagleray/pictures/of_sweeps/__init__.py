"""The pictures of sweeps, one a file (see `pictures/__init__.py`)."""

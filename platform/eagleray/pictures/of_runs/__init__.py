"""The pictures of runs, one a file (see `pictures/__init__.py`)."""

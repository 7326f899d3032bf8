"""The command line, the Python API and the terminal display."""

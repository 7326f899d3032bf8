"""The evaluators, one in each file: measurements of a representation."""

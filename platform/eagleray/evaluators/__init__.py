"""The evaluators, one a file: what a representation is worth."""

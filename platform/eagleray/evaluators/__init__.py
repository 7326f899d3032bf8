"""The evaluators: measurements of a representation, one per file."""

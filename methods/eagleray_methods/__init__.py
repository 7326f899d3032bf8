"""The methods, one per file, named like the file."""

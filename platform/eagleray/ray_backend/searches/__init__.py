"""The searches, one a file: which points of a sweep are tried."""

"""Copies of what lies at addresses (`s3://bucket/folder`): fetched, kept in step, sent.

All other code works with the copy, an ordinary folder (contracts/paths.py). Imports of what reads the stores are slow,
and happen at the first use.
"""

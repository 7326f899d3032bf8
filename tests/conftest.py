"""Fixtures and settings for all tests."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Make warnings errors in child processes too.

    Python reads the same filters from the environment.
    """
    os.environ["PYTHONWARNINGS"] = ",".join(config.getini("filterwarnings"))

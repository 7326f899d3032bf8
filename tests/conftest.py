"""Fixtures and settings for all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from moto.server import ThreadedMotoServer

    from buckets import Bucket


def pytest_configure(config: pytest.Config) -> None:
    """Make warnings errors in child processes too.

    Python reads the same filters from the environment.
    """
    os.environ["PYTHONWARNINGS"] = ",".join(config.getini("filterwarnings"))


@pytest.fixture(scope="module")
def s3_server() -> "Iterator[ThreadedMotoServer]":
    """An S3 server for the tests of a file."""
    from buckets import served

    with served() as server:
        yield server


@pytest.fixture
def bucket(s3_server: "ThreadedMotoServer", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Bucket":
    """An empty bucket; this is the machine `here`, in an empty directory."""
    from buckets import Bucket

    bucket = Bucket(s3_server, monkeypatch, tmp_path)
    bucket.on("here")
    monkeypatch.chdir(tmp_path)
    return bucket

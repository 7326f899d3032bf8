"""An S3 server on this machine, and the machines that use it: each has copies of its own."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from eagleray.storage import mirror

SECRET = "s3cr3t-canary"


class Bucket:
    """A bucket named `lab`, and what was asked of the server."""

    def __init__(self, server: ThreadedMotoServer, patch: pytest.MonkeyPatch, caches: Path):
        self.server, self.patch, self.caches, self.asked = server, patch, caches, list[str]()
        self.own = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        if self.own.exists("lab"):
            self.own.rm("lab", recursive=True)
        self.own.mkdir("lab")
        call = s3fs.S3FileSystem._call_s3

        async def noted(store: s3fs.S3FileSystem, method: str, *args: object, **more: object) -> object:
            if store is not self.own:
                self.asked.append(method)
            return await call(store, method, *args, **more)

        patch.setattr(s3fs.S3FileSystem, "_call_s3", noted)

    def on(self, machine: str) -> None:
        """Go on as another machine, which has other copies."""
        self.patch.setenv("XDG_CACHE_HOME", str(self.caches / machine))
        mirror._seen.clear()

    def names(self, below: str = "") -> list[str]:
        """List the objects, without their bucket."""
        return [key.removeprefix("lab/") for key in sorted(self.own.find(f"lab/{below}"))]

    def count(self, method: str) -> int:
        """Return how often something was asked since the last time, and forget it."""
        found, self.asked = self.asked.count(method), []
        return found


@contextmanager
def served() -> Iterator[ThreadedMotoServer]:
    """Start the server, and name it in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()

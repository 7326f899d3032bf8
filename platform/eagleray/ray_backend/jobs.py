"""Jobs: what a cluster runs on after the terminal that sent it has closed.

They go through the dashboard of a cluster (`http://HEAD:8265`), so no Ray need run here.
"""

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Failed
from eagleray.ray_backend.tokens import authenticated
from eagleray.runs.preflight import cluster_at, is_for_jobs

PAUSE = 2  # seconds before a lost connection is tried again
PATIENCE = "60"  # seconds in which a stopped job may end by itself; Ray's 3 are too few to close a sweep
OPEN = {"PENDING", "RUNNING"}


class Jobs:
    """The jobs of a cluster.

    Args:
        address: of its dashboard.

    Raises:
        ConfigError: no dashboard that takes jobs answers there, or it asks for another token.
    """

    def __init__(self, address: str):
        self.address = address
        if not is_for_jobs(address):
            raise ConfigError(f"--address {address}: jobs go to a cluster's dashboard; write http://HEAD:8265")
        cluster_at(address)
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # else this variable or RAY_ADDRESS would override it
        for noisy in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{noisy}").setLevel(logging.ERROR)
        with self._answers():
            self.client = authenticated(lambda: JobSubmissionClient(address), address)

    def submit(self, job: str, title: str, command: str, archive: bytes) -> None:
        """Send an archive, and run a command in its folder."""
        with self._answers(), tempfile.TemporaryDirectory() as place:
            (package := Path(place) / "job.zip").write_bytes(archive)
            self.client.submit_job(
                entrypoint=command,
                submission_id=job,
                metadata={"eagleray": title},
                runtime_env={"working_dir": str(package), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": PATIENCE}},
            )

    def all(self) -> list[JobDetails]:
        """Return the jobs that were sent, the oldest first."""
        with self._answers():
            jobs = [job for job in self.client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0)

    def details(self, job: str) -> JobDetails:
        """Return what is known of a job.

        Raises:
            ConfigError: there is no such job.
        """
        known = {str(each.submission_id): each for each in self.all()}
        if job not in known:
            raise ConfigError(f"there is no job {job} at {self.address} (there are: {', '.join(known) or 'none'})")
        return known[job]

    def log(self, job: str) -> str:
        """Return what a job has printed."""
        self.details(job)
        with self._answers():
            return self.client.get_job_logs(job)

    def stop(self, job: str) -> bool:
        """End a job as Ctrl-C would; return whether it was running."""
        self.details(job)
        with self._answers():
            return self.client.stop_job(job)

    def follow(self, job: str, show: Callable[[str], None]) -> JobDetails:
        """Show what a job prints until it ends, and return how it ended.

        A connection that is lost is made again.

        Raises:
            Failed: the cluster no longer answers.
        """
        shown = 0

        async def tail() -> None:
            nonlocal shown
            skip = shown  # the log comes from its start again
            async for text in self.client.tail_job_logs(job):
                show(text[skip:])
                shown, skip = shown + len(text[skip:]), max(0, skip - len(text))

        while (details := self.details(job)).status in OPEN:
            try:
                asyncio.run(tail())
            except (aiohttp.ClientError, RuntimeError, OSError):
                time.sleep(PAUSE)
        show(self.log(job)[shown:])
        return details

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Turn errors of the dashboard into sentences."""
        try:
            yield
        except (ConnectionError, requests.ConnectionError) as error:
            raise Failed(f"the cluster at {self.address} no longer answers; its jobs may go on") from error
        except AuthenticationError:
            raise ConfigError(f"{self.address} no longer accepts the token that is here") from None
        except (RuntimeError, requests.HTTPError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(f"{self.address} is no Ray dashboard that takes jobs ({reason})") from None

"""Commands for jobs on a cluster, which go on when the terminal closes."""

import shlex
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from eagleray.app.line import Settings, app, console, fail, say, split
from eagleray.config.places import placed
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Failed

if TYPE_CHECKING:
    from eagleray.ray_backend.jobs import Jobs

Dashboard = Annotated[
    str,
    typer.Option(
        "--address", metavar="http://HEAD:8265", envvar="RAY_API_SERVER_ADDRESS", help="of the cluster's dashboard"
    ),
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="as `eagleray submit` and `eagleray status` name it")]
ENDED = {"SUCCEEDED": 0, "STOPPED": 130}


@app.command()
def submit(
    settings: Settings = None,
    address: Dashboard = "",
    resume: Annotated[bool, typer.Option("--resume", help="continue the newest one that was interrupted")] = False,
    extend: Annotated[bool, typer.Option("--extend", help="add to the newest sweep of that name")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="do not follow the log")] = False,
) -> None:
    """Send a sweep or run file to a cluster, which runs it.

    The working directory is sent too, without secrets, results, caches and large files: what is sent and what is left
    out is listed first. The log is followed; Ctrl-C and a closed terminal end only that.
    """
    file, overrides = split(settings)
    flags = ["--resume"] * resume + ["--extend"] * extend
    from eagleray.app.submission import prepared

    _check(address)
    with placed(file, overrides):
        submission = prepared(file, overrides, address, flags)
    jobs = _jobs(address)
    for line in (*submission.shipment.lines(), *submission.notes):
        say(line)
    try:
        jobs.submit(submission.job, submission.title, submission.command, submission.shipment.archive())
    except Failed as error:
        fail(str(error), 1)
    say(f"sent as {submission.job}\n")
    if not detach:
        _follow(jobs, submission.job)


@app.command()
def status(job: Annotated[str | None, typer.Argument(metavar="[JOB]")] = None, address: Dashboard = "") -> None:
    """List the jobs of a cluster, or show one."""
    jobs = _jobs(address)
    from eagleray.app.terminal import table

    lines = [
        [
            str(each.submission_id),
            each.status.lower(),
            _when(each.start_time),
            (each.metadata or {}).get("eagleray", ""),
        ]
        for each in ([jobs.details(job)] if job else jobs.all())
    ]
    console.print(table(["job", "state", "started", "what"], lines))
    if job and (message := jobs.details(job).message):
        say(message)


@app.command()
def logs(
    job: Job,
    address: Dashboard = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the job ends")] = False,
) -> None:
    """Print what a job has printed."""
    jobs = _jobs(address)
    if follow:
        _follow(jobs, job)
    else:
        _show(jobs.log(job))


@app.command()
def stop(job: Job, address: Dashboard = "") -> None:
    """End a job as Ctrl-C would, so that --resume continues it."""
    was_running = _jobs(address).stop(job)
    say(f"{job} is asked to stop; `eagleray submit … --resume` continues it" if was_running else f"{job} had ended")


def _check(address: str) -> None:
    from eagleray.runs.preflight import is_for_jobs

    if not is_for_jobs(address):
        raise ConfigError(
            f"--address {address or 'is missing'}: jobs go to a cluster's dashboard; write --address http://HEAD:8265"
        )


def _jobs(address: str) -> "Jobs":
    _check(address)
    try:
        from eagleray.ray_backend.jobs import Jobs

        return Jobs(address)
    except ImportError as error:
        raise ConfigError(f"jobs need {error.name}: pip install 'eagleray[cluster]'") from None
    except Failed as error:
        fail(str(error), 1)


def _follow(jobs: "Jobs", job: str) -> None:
    """Show the log of a job; end with its exit code."""
    again = shlex.join([job, "--address", jobs.address])
    try:
        end = jobs.follow(job, _show)
    except KeyboardInterrupt:
        print(
            f"eagleray: {job} goes on, only its log is no longer followed. To follow: eagleray logs -f {again}. "
            f"To stop: eagleray stop {again}",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    except Failed as error:
        fail(f"{error}. To follow again: eagleray logs -f {again}", 1)
    reason = (end.message or "").partition(",")[0] if end.status == "FAILED" else ""  # behind it is the log again
    say(f"{job} {end.status.lower()}" + f": {reason}" * bool(reason))
    if code := ENDED.get(end.status, end.driver_exit_code or 1):
        raise typer.Exit(code)


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _when(milliseconds: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(milliseconds / 1000)) if milliseconds else ""

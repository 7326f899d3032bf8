"""Refuse a run or a sweep before it starts: what `check`, `train` and `sweep` do first."""

from eagleray.config import Run, Sweep
from eagleray.runs import preflight
from eagleray.tracking.store import store_uri


def check_run(run: Run, address: str | None = None, *, full: bool = False) -> None:
    """Refuse a run that cannot train.

    Args:
        run: the run.
        address: of a Ray cluster; None: this machine.
        full: also decode its images and build its network, as training does first.

    Raises:
        ConfigError: what does not fit, and the remedy.
    """
    store_uri(run.tracking.uri)
    preflight.check_run(run, address)
    if full:
        from eagleray.runs.assemble import assemble

        assemble(run)


def check_sweep(sweep: Sweep, address: str | None = None, *, full: bool = False) -> None:
    """Refuse a sweep of which a run cannot train or be compared.

    Args and errors as `check_run`.
    """
    store_uri(sweep.run.get("tracking", {}).get("uri"))
    preflight.check_sweep(sweep, address)
    if full:
        from eagleray.runs.rehearsal import rehearse

        rehearse(sweep, preflight.planned(sweep))

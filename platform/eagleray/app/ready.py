"""Refuse a run or a sweep before it starts: what `check`, `train` and `sweep` do first."""

from eagleray.config import Run, Sweep
from eagleray.contracts.errors import ConfigError
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
    if run.device == "cuda" and address is None:
        from eagleray.runs.device import pick_device  # torch takes seconds, which only this setting is worth

        pick_device("cuda")
    if full and not preflight.lies_elsewhere(run, address):
        import torch

        from eagleray.runs.assemble import assemble

        assemble(run, device=None if address is None else torch.device("cpu"))


def check_sweep(sweep: Sweep, address: str | None = None, *, full: bool = False) -> list[Run]:
    """Refuse a sweep of which a run cannot train or be compared.

    Args and errors as `check_run`. Return its runs (`runs.preflight.planned`).
    """
    store_uri(sweep.run.get("tracking", {}).get("uri"))
    runs = preflight.check_sweep(sweep, address)
    if sweep.gpus_per_trial and address is None:
        _check_gpus(sweep)
    here = [run for run in runs if not preflight.lies_elsewhere(run, address)] if full else []
    if here:
        from eagleray.runs.rehearsal import rehearse

        rehearse(sweep, here)
    return runs


def _check_gpus(sweep: Sweep) -> None:
    """Refuse trials that share more GPUs than this machine has."""
    import torch

    wanted = sweep.gpus_per_trial * max(run.workers for run in sweep.probes())
    if (found := torch.cuda.device_count()) < wanted:
        raise ConfigError(
            f"gpus_per_trial={sweep.gpus_per_trial:g} needs more GPUs than torch finds here ({found}): "
            "set gpus_per_trial=0, or run on a cluster with --address"
        )

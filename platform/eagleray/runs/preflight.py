"""Refuse what cannot work, before anything slow is imported or any image decoded.

`eagleray check`, `train` and `sweep` ask here first, so they refuse the same in the same words. What needs the images
themselves or a network is in `assemble` for a run, in `rehearsal` for a sweep.
"""

import json
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from eagleray.config import Run, Sweep
from eagleray.config.metrics import check_metric, check_protocols, needs
from eagleray.config.run import changed, epochs_of
from eagleray.config.search_points import as_trial, points
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.machine import cores, may_have_gpu
from eagleray.contracts.paths import address_of
from eagleray.contracts.report import Failed
from eagleray.data.cautions import choosing
from eagleray.data.facts import Facts, facts_of
from eagleray.data.splits import few_of_each
from eagleray.runs.browse import open_run
from eagleray.runs.other_images import check_others
from eagleray.storage.mirror import input_at_hand
from eagleray.storage.store import remove, write

ANSWER = 10  # seconds in which something must listen at an address
NO_GPU = "there is no GPU here"


def check_run(run: Run, address: str | None = None) -> None:
    """Refuse a run that cannot train.

    Args:
        run: the run.
        address: of a Ray cluster, or of the dashboard that takes jobs (`http://…`); None: this machine.

    Raises:
        ConfigError: what does not fit, and the remedy.
    """
    _check_machine(run.tracking.runs, run.workers, 1, address)
    if run.device == "cuda" and address is None and not may_have_gpu():
        raise ConfigError(f"device=cuda: {NO_GPU}: set device=auto or device=cpu, or run on a cluster with --address")
    if lies_elsewhere(run, address):
        return
    _check_trained(run)
    if facts := facts_of(run):  # else training downloads the images first
        _check_facts(run, facts)
        check_protocols(run, labels=facts.labels is not None, validation=facts.has_validation)
    check_others(run)


def check_sweep(sweep: Sweep, address: str | None = None) -> list[Run]:
    """Refuse a sweep of which a run cannot train or be compared.

    Args and errors as `check_run`. Return its `planned` runs.
    """
    now = datetime.now().astimezone()
    if sweep.budget.end(now) <= now:
        raise ConfigError(f"budget.until={sweep.budget.until} is past")
    runs, known = planned(sweep), dict[str, Facts | None]()
    check_settings(sweep, runs)
    _check_machine(runs[0].tracking.runs, max(run.workers for run in runs), sweep.cpus_per_trial, address)
    if sweep.gpus_per_trial and address is None and not may_have_gpu():
        raise ConfigError(
            f"gpus_per_trial={sweep.gpus_per_trial:g}: {NO_GPU}: leave it out, or run on a cluster with --address"
        )
    for run in runs:
        if lies_elsewhere(run, address):
            continue
        _check_trained(run)
        others = {name: one.model_dump(mode="json") for name, one in run.evaluate.others.items()}
        key = json.dumps([run.file()["data"], others, run.seed])
        if key not in known:
            known[key] = facts_of(run)
            check_others(run)
        if facts := known[key]:
            _check_facts(run, facts)
            check_grace(sweep, run, facts.samples)
            labels, validation = facts.labels is not None, facts.has_validation
            check_metric(
                sweep.metric, run, every_epoch=sweep.compares_every_epoch, labels=labels, validation=validation
            )
    return runs


def caution_of(run: Run) -> str:
    """Return a sentence on what the images of a run that needs labels do not show; empty: there is nothing."""
    facts = facts_of(run) if run.labels and all(path.exists() for _, path in run_paths(run)) else None
    if run.labels is None or facts is None or facts.labels is None or facts.class_names is None:
        return ""
    few = few_of_each(facts.labels, run.labels, run.seed, facts.class_names)
    return choosing(len(few), facts.validation_labels, len(facts.class_names))


def is_for_jobs(address: str | None) -> bool:
    """Return whether an address is that of a dashboard, which takes jobs."""
    return address is not None and address.startswith(("http://", "https://"))


def lies_elsewhere(run: Run, address: str | None) -> bool:
    """Return whether images or networks that a job reads are on the cluster alone, so that only it can check them."""
    return is_for_jobs(address) and not all(path.exists() for _, path in run_paths(run))


def run_paths(run: Run) -> Iterator[tuple[str, Path]]:
    """Yield the paths that a run reads, with their keys."""
    for key, section in run.chosen.items():
        for name, value in section.config:
            if isinstance(value, Path | str) and os.path.isabs(value):
                yield f"{key}.{name}", Path(value)


def planned(sweep: Sweep) -> list[Run]:
    """Return the runs of a sweep.

    If its search learns from results, they are not known yet: return those at the ends of its ranges.
    """
    if sweep.learns:
        runs = [as_trial(sweep, run) for run in sweep.probes()]
        return [changed(run, {"seed": run.seed + more}) for run in runs for more in range(sweep.seeds)]
    return [point.run(sweep) for point in points(sweep)]


def check_images(run: Run, *, samples: int, channels: int | None, has_labels: bool) -> None:
    """Check that a run asks only for what its images have.

    Args:
        run: the run.
        samples: images to train on.
        channels: of the images, if known already.
        has_labels: whether they have classes.

    Raises:
        ConfigError: it asks for more.
    """
    if samples < 2:
        raise ConfigError(f"data={run.data.title} has {samples} training image, and at least 2 are needed; add some")
    if run.batch_size > samples:
        raise ConfigError(
            f"batch_size={run.batch_size} is larger than the data: {samples} training images (allowed: 2 to {samples})"
        )
    grayscale = run.augment.changes().get("grayscale")
    if channels == 1 and grayscale:
        raise ConfigError(f"augment.grayscale={grayscale} has no effect: these images are grey already")
    if run.labels is not None and not has_labels:
        raise ConfigError(
            f"method={run.method.name} needs labels, and these images have none; sort some into class folders, or "
            "name them in a CSV file: data.labels=FILE.csv"
        )


def check_settings(sweep: Sweep, runs: list[Run]) -> None:
    """Check settings of a sweep against its runs.

    Raises:
        ConfigError: they contradict each other.
    """
    _check_share(sweep)
    for run in sorted(runs, key=lambda run: run.epochs or 0):
        check_grace(sweep, run)
    if sweep.changes_trials and "optimizer.name" in sweep.vary:
        raise ConfigError(
            f"vary.optimizer.name cannot change during training (scheduler={sweep.scheduler}): "
            "another optimizer has another state"
        )


def check_grace(sweep: Sweep, run: Run, samples: int | None = None) -> None:
    """Check that a sweep waits no longer than a trial lasts, as far as that is known.

    Raises:
        ConfigError: it does.
    """
    epochs = epochs_of(run.file(), samples)
    if epochs is not None and sweep.grace > epochs:
        known = f"run.epochs={epochs}" if run.steps is None else f"run.steps={run.steps} end in epoch {epochs}"
        raise ConfigError(f"grace={sweep.grace} is longer than a trial: {known}")


def cluster_at(address: str) -> str:
    """Return the address of a cluster, at which something listens.

    Ray itself would try for a quarter of an hour. `auto` is RAY_ADDRESS, or the cluster that `ray start` began on this
    machine; Ray would also join the Ray that another sweep has started for itself.

    Raises:
        ConfigError: nothing listens there.
    """
    place = _begun_here() if address == "auto" else address
    host, _, port = re.sub(r"^\w+://|/+$", "", place).rpartition(":")
    if not place:
        raise ConfigError(
            "--address auto finds no cluster: begin one with `ray start`, set RAY_ADDRESS, or give HOST:PORT"
        )
    form = "http://HOST:PORT" if is_for_jobs(place) else "HOST:PORT, ray://HOST:PORT or auto"
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
    except (ValueError, OverflowError):
        raise ConfigError(f"--address {address} is not {form}") from None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigError(f"no Ray answers at --address {address} ({why}); start it, or correct the address") from None
    return place


def _begun_here() -> str:
    """Return the address that `auto` stands for; empty: there is none."""
    temporary = os.environ.get("RAY_TMPDIR") or (sys.platform == "linux" and os.environ.get("TMPDIR")) or "/tmp"
    note = Path(temporary) / "ray/ray_current_cluster"  # as `ray start` leaves it
    return os.environ.get("RAY_ADDRESS") or (note.read_text().strip() if note.is_file() else "")


def check_writable(path: Path, setting: str) -> None:
    """Check that a file can be written to a place.

    Args:
        path: of the file; its folder need not exist.
        setting: what chooses another place.

    Raises:
        ConfigError: it cannot.
    """
    there = next(each for each in path.absolute().parents if each.exists())
    if not there.is_dir():
        raise ConfigError(f"{path} cannot be written, as {there} is a file: set {setting}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{path} cannot be written, as you may not write to {there}: set {setting}")


def check_store(path: Path, setting: str) -> None:
    """Check that objects can be written to an address, if a path is the copy of one, and removed.

    Raises:
        ConfigError: they cannot.
    """
    if (address := address_of(path)) is None:
        return
    probe = path / f".probe-{secrets.token_hex(8)}"
    try:
        write(probe, b"")
        remove([probe])
    except Failed as error:
        raise ConfigError(f"{setting}: {str(error).replace(str(address_of(probe)), address)}") from None


def _check_machine(runs: str, workers: int, cpus: float, address: str | None) -> None:
    if not is_for_jobs(address):
        check_writable(Path(runs) / "run", "tracking.runs to another folder")
        check_store(Path(runs), "tracking.runs")
    if address is not None:
        cluster_at(address)
        return
    if workers * cpus > cores():
        asked = f"workers={workers} need more" if workers > 1 else f"cpus_per_trial={cpus:g} is more"
        remedy = f"workers={max(1, int(cores() / cpus))}" if workers > 1 else f"cpus_per_trial={cores()}"
        raise ConfigError(
            f"{asked} cores than this machine has ({cores()}): set {remedy}, or run on a cluster with --address"
        )


def _check_trained(run: Run) -> None:
    """Refuse a network that starts from what is not there, or is no finished run."""
    weights = getattr(run.encoder.config, "weights", None)
    if isinstance(weights, Path) and not input_at_hand(weights).is_file():
        raise ConfigError(f"encoder.weights={weights} does not exist; correct it, or leave it out for new weights")
    for section, key in ((run.encoder, "run"), (run.method, "teacher")):
        source = getattr(section.config, key, None)
        if key not in section.declaration.required or not isinstance(source, Path):
            continue
        try:
            state = open_run(source).state
        except ConfigError as error:
            raise ConfigError(f"{section.kind}.{key}: {error}") from None
        if state != "finished":
            raise ConfigError(
                f"{section.kind}.{key}={source} is {state}, not finished: continue it with --resume, or name another"
            )


def _check_facts(run: Run, facts: Facts) -> None:
    check_images(run, samples=facts.samples, channels=facts.channels, has_labels=facts.labels is not None)
    if run.labels is not None and facts.labels is not None and facts.class_names is not None:
        few_of_each(facts.labels, run.labels, run.seed, facts.class_names)
    if facts.labels is not None and facts.class_names is not None:
        known = set(facts.labels.tolist())
        missing = [name for label, name in enumerate(facts.class_names) if label not in known]
        for name in [one for one in _trained_further(run) if missing]:
            raise ConfigError(
                f"evaluate.{name}: train has no image of class {missing[0]!r} to train with; raise data.limit, or set "
                f"evaluate.{name}.when=never"
            )


def _trained_further(run: Run) -> list[str]:
    """Return the evaluators that train the network with labels."""
    known = run.evaluate.evaluators.items()
    return [name for name, one in known if "network" in needs(one) and run.evaluate.when(name) != "never"]


def _check_share(sweep: Sweep) -> None:
    share, device = sweep.gpus_per_trial, sweep.run.get("device")
    if share > 1 and share != int(share):
        raise ConfigError(
            f"gpus_per_trial={share}: only less than one GPU can be a fraction; set {int(share)} or {int(share) + 1}"
        )
    if device == "cuda" and not share:
        raise ConfigError("run.device=cuda needs a share of a GPU: set gpus_per_trial=1, or a fraction")
    if device == "cpu" and share:
        raise ConfigError(f"gpus_per_trial={share} has no effect with run.device=cpu; leave one of them out")
    workers = max(run.workers for run in sweep.probes())
    if workers > 1 and share != int(share):
        raise ConfigError(
            f"gpus_per_trial={share}: the {workers} workers of a trial need a whole GPU each; "
            "only trials of one worker can share a GPU"
        )
    if workers > 1 and sweep.changes_trials:
        raise ConfigError(
            f"scheduler={sweep.scheduler} needs trials of one worker, and these have workers={workers}; set workers=1"
        )

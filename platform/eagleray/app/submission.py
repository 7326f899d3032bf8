"""Prepare a run or sweep as a job for a cluster: what it needs, what to send, what must be there already."""

import os
import re
import secrets
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import yaml

from eagleray.app.ready import check_run, check_sweep
from eagleray.app.shipping import Shipment, gather
from eagleray.config import Run, Sweep, load_run, load_sweep
from eagleray.config.nested import read_tree
from eagleray.config.plugin_files import PluginFile
from eagleray.config.registry import find
from eagleray.config.run import run_tree
from eagleray.config.sections import Tracking
from eagleray.config.source import find_source
from eagleray.config.sweep_file import is_sweep, sweep_tree
from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import address_of
from eagleray.runs.preflight import run_paths

OURS = ("eagleray", "eagleray_methods")  # always sent, so that the cluster runs what was checked here


@dataclass(frozen=True)
class Submission:
    """A job that is ready to be sent."""

    job: str  # what `eagleray logs` and `stop` call it
    title: str
    command: str  # that the cluster runs in the folder of the files
    shipment: Shipment
    notes: tuple[str, ...]  # what must be there on the nodes


def prepared(file: Path | None, overrides: list[str], address: str, flags: Iterable[str] = ()) -> Submission:
    """Check a run or sweep as `train` and `sweep` do, and gather what it needs.

    Args:
        file: of a run or a sweep; None: the settings are those of a run.
        overrides: `key=value`.
        address: of the dashboard that takes jobs.
        flags: of the command, such as `--resume`.

    Raises:
        ConfigError: it cannot train, or needs what lies here alone.
    """
    is_question = file is not None and is_sweep(read_tree(file))
    question: Run | Sweep
    if file and is_question:
        question, tree = load_sweep(file, overrides), sweep_tree(file, overrides)
        runs, command, title = check_sweep(question, address, full=True), "sweep", question.name
    else:
        question, tree = load_run(file, overrides), run_tree(file, overrides)
        check_run(question, address, full=True)
        runs, command, title = [question], "train", question.method.title
    _check_texts(tree)
    _check_tracking(runs[0].tracking)
    name = f"{file.stem if file else command}.submitted.yaml"
    modules = sorted({module for run in runs for module in _modules(run)} | set(_modules_of_sweep(question)))
    texts = {name: yaml.safe_dump(_with_store(tree, is_sweep=is_question), sort_keys=False), **_our_version()}
    shipment = gather(Path.cwd(), {**_packages(OURS), **_packages(modules)}, texts)
    notes = list(dict.fromkeys(note for run in runs for note in _needed(run, shipment)))
    for module in modules:
        if file_ := PluginFile.of(module):
            _check_sent("the plugin", file_.path, shipment)
    words = ["python", "-m", "eagleray", command, name, "--address", "auto", "--plain", *flags]
    job = re.sub(r"[^\w.-]+", "-", f"{title}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    place = runs[0].tracking.runs
    shared_by_all = address_of(place) or f"{place} on the nodes, which must all share it"
    notes += [f"results: {shared_by_all}", _store_note(runs[0])]
    return Submission(job, f"{command} {title}", shlex.join(words), shipment, tuple(notes))


def _check_texts(tree: Mapping[str, Any]) -> None:
    """Refuse paths that mean another place in the folder of a job."""
    here = Path.cwd()
    for text in _texts(tree):
        path = Path(text.partition(".py:")[0]).expanduser()
        if ".." in path.parts:
            raise ConfigError(f"{text}: the nodes have no folder above the one that is sent; write an absolute path")
        if path.is_absolute() and path.is_relative_to(here):
            raise ConfigError(f"{text} has another place on the nodes: write ./{path.relative_to(here)}")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _check_tracking(tracking: Tracking) -> None:
    """Refuse results in the job's own folder."""
    relative = [] if Path(tracking.runs).is_absolute() else [f"tracking.runs={tracking.runs}"]
    uri = tracking.uri or ""
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        relative.append(f"tracking.uri={uri}")
    if relative:
        raise ConfigError(
            f"{' and '.join(relative)} would lie in the job's own folder, which the cluster deletes: set tracking.runs "
            "to a folder that all nodes share, such as /shared/runs, and tracking.uri to a server"
        )


def _needed(run: Run, shipment: Shipment) -> Iterator[str]:
    """Yield what a run reads that is not sent.

    Raises:
        ConfigError: it reads something from the folder that is sent, and that is left out.
    """
    for key, path in run_paths(run):
        if (address := address_of(path)) is not None:
            yield f"{key}={address}: every node fetches it"
        elif path.is_relative_to(Path.cwd()):
            _check_sent(key, path, shipment)
        elif path.exists():
            yield f"{key}={path} lies on this machine: every node must have it at that place too"
        else:
            yield f"{key}={path} is not on this machine, so the cluster checks it"


def _check_sent(what: str, path: Path, shipment: Shipment) -> None:
    """Refuse a path that a job needs and does not get."""
    here = Path.cwd()
    if not path.is_relative_to(here):
        raise ConfigError(f"{what}={path} lies outside of {here}, which is sent: submit from the folder that has it")
    place = str(path.relative_to(here))
    if path.is_dir():
        raise ConfigError(
            f"{what}={place} is a folder of this machine, and folders of images or runs are not sent: put it where "
            "every node sees it, and write its absolute path"
        )
    if place not in shipment.files:
        raise ConfigError(f"{what}={place} is not sent ({shipment.left_out.get(place, 'its folder is left out')})")


def _modules(run: Run) -> Iterator[str]:
    """Yield the modules and files that a run names."""
    yield from (section.declaration.module for section in run.chosen.values())
    yield from (each.module for each in run.evaluate.evaluators.values())


def _modules_of_sweep(question: Run | Sweep) -> Iterator[str]:
    if isinstance(question, Sweep):
        yield find("scheduler", question.scheduler).module
        yield find("search", question.search).module


def _packages(modules: Iterable[str]) -> dict[str, Path]:
    """Return the packages of modules, by name, that do not lie in the folder that is sent."""
    found: dict[str, Path] = {}
    for module in modules:
        source = None if PluginFile.of(module) else find_source(module)
        if source is None:
            continue
        above = source.path.parents[module.count(".") + (source.path.name == "__init__.py")]
        top = module.partition(".")[0]
        if not above.is_relative_to(Path.cwd()):
            found |= {top: above / top} if (above / top).is_dir() else {f"{top}.py": above / f"{top}.py"}
    return found


def _our_version() -> dict[str, str]:
    """Return what lets the cluster read the version of the code that is sent."""
    try:
        ours = distribution("eagleray")
    except PackageNotFoundError:
        return {}
    return {f"eagleray-{ours.version}.dist-info/METADATA": ours.read_text("METADATA") or ""}


def _with_store(tree: Mapping[str, Any], *, is_sweep: bool) -> dict[str, Any]:
    """Return settings that name this machine's MLflow server, unless they name a store."""
    run = dict(tree.get("run") or {}) if is_sweep else dict(tree)
    tracking = dict(run.get("tracking") or {})
    uri = tracking.get("uri") or os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("sqlite:///") and not tracking.get("uri"):
        return dict(tree)
    run["tracking"] = {**tracking, **({"uri": uri} if uri else {})}
    return {**tree, "run": run} if is_sweep else run


def _store_note(run: Run) -> str:
    uri = run.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri or uri.startswith("sqlite:"):
        return "MLflow: MLFLOW_TRACKING_URI of the head, if it is set; later: eagleray sync RUNS tracking.uri=http://…"
    return f"MLflow: {without_password(uri)}"

"""A file of a user's own: written from a template, and checked.

`eagleray new method fancy.py`, `eagleray check fancy.py`.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eagleray.config import Run, load_run
from eagleray.config.plugin_files import PluginFile, place_in
from eagleray.config.registry import WORDS, Declaration, Kind, find, kinds_in
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import write as write_file
from eagleray.contracts.report import Diverged

TEMPLATES = Path(__file__).parent / "templates"
KINDS: dict[str, Kind] = {"method": "method", "encoder": "encoder", "dataset": "data", "evaluator": "evaluator"}
SHORT = ["data.limit=256", "batch_size=32", "epochs=25", "device=cpu", "precision=fp32", "threads=1"]
QUIET = ["evaluate.linear.when=never", "evaluate.every=1000", "tracking.experiment=check"]


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    check: str
    complaints: list[str]  # none: all is well


def write(kind: str, path: Path) -> Declaration:
    """Write a plugin's template to a new file.

    Raises:
        ConfigError: there is no such kind, or the file exists, cannot be written, or has no Python name.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no template of a {kind}; there are: {', '.join(KINDS)}")
    if path.exists():
        raise ConfigError(f"{path} exists already; name another file")
    if not re.fullmatch(r"[a-z]\w*\.py", path.name):
        raise ConfigError(
            f"{path}: the file's name becomes the name of the {kind}; write lower case, as in my_{kind}.py"
        )
    words = path.stem.split("_")
    text = (TEMPLATES / f"{kind}.py").read_text(encoding="utf-8")
    text = text.replace("NewPlugin", "".join(map(str.capitalize, words))).replace("new_plugin", path.stem)
    write_file(path, text, "{}; name another file")
    return find(KINDS[kind], str(path.absolute()))


def the_declaration(name: str) -> Declaration:
    """Return what a plugin file declares, whatever its kind.

    Raises:
        ConfigError: it declares nothing that can be checked, or several things.
    """
    file = PluginFile.of(name)
    assert file is not None
    found: list[tuple[Kind, str]] = [
        (kind, each)
        for kind, classes in kinds_in(file.path).items()
        for each in classes
        if file.class_name in (None, each) and kind in KINDS.values()
    ]
    if len(found) == 1:
        return find(found[0][0], str(file))
    *most, last = KINDS
    one_of, called = f"{', '.join(most)} or {last}", f" called {file.class_name}" if file.class_name else ""
    listed = ", ".join(f"{each} ({WORDS[kind]})" for kind, each in found)
    more = (
        f"declares several: {listed}; name one, as in {file.path.name}:{found[0][1]}"
        if found
        else f"declares none{called}"
    )
    raise ConfigError(f"{file.path}: a file to check declares a {one_of}, and this one {more}")


def findings(one: Declaration, settings: Iterable[str] = ()) -> Iterator[Finding]:
    """Check a user's method, encoder, dataset or evaluator.

    Args:
        one: its declaration.
        settings: `key=value`, on top of small ones that are fast.
    """
    run = load_run(None, [*small_settings(one), *settings])
    for name, check in _checks(one.kind).items():
        found, crashed = _tried(check, run, Path(one.module.rpartition(":")[0] or one.module))
        yield Finding(name, found)
        if crashed:
            return  # the others would only repeat it


def small_settings(one: Declaration) -> list[str]:
    """Return settings of a small run with the plugin in it."""
    if one.kind == "evaluator":
        return [f"evaluate.also=[{one.module}]", *SHORT, *QUIET, "encoder.width=8", "epochs=1"]
    if one.kind == "data":
        return [f"data={one.module}", *SHORT, *QUIET, "encoder.width=8", "epochs=1"]
    if one.kind == "encoder":
        return [f"encoder={one.module}", *SHORT, *QUIET, "image_size=32", "epochs=1", "method.hidden=16"]
    size = ["encoder.depth=1", "encoder.dim=32"] if "tokens" in one.needs else ["encoder.width=8"]
    labels = ["labels.per_class=4"] if one.needs & {"labels", "only_labels"} else []
    trained = "trained_encoder" in one.needs  # by a run that the user names
    return [f"method={one.module}", *SHORT, *QUIET, *labels, *([] if trained else size)]


def _checks(kind: Kind) -> dict[str, Callable[[Run], Iterator[str]]]:
    from eagleray.runs.method_checks import CHECKS

    return {**(CHECKS if kind in ("method", "encoder") else {}), "training": trains}


def trains(run: Run) -> Iterator[str]:
    """Check that a short run ends well, its embeddings apart."""
    from eagleray.loop import train
    from eagleray.runs.evaluation import collapsed

    with tempfile.TemporaryDirectory() as folder:
        try:
            epochs = [report for report in train(run, Path(folder)) if report.epoch_ended]
        except Diverged as error:
            yield str(error).partition(";")[0]
            return
    if wrong := [name for name, value in epochs[-1].metrics.items() if value != value]:
        yield f"{', '.join(wrong)} is not a number; return only what could be measured"
    seen, loss = [report.metrics for report in epochs], run.collapsed_loss
    found = ((report, collapsed(seen[:count], loss)) for count, report in enumerate(epochs, 1))
    report, why = next(((report, why) for report, why in found if why), (epochs[-1], ""))
    if why and run.labels is None:
        yield (
            f"after {report.progress.step} steps it has collapsed: {why} "
            f"(z_std {report.metrics['z_std']:.3f}, z_rank {report.metrics['z_rank']:.1f}); "
            "does a target lack its stop-gradient, or the loss its negatives or variance term?"
        )


def _tried(check: Callable[[Run], Iterator[str]], run: Run, file: Path) -> tuple[list[str], bool]:
    """Return a check's complaints, and whether the plugin's code crashed."""
    try:
        return list(check(run)), False
    except ConfigError as error:  # the method may be right, and only its defaults too large for the check
        return [f"{error}; a check is small ({' '.join(SHORT[:2])}): type what fits after the file's name"], True
    except Exception as error:  # whatever a user's code raises is what the check reports
        last = str(error).strip().rpartition("\n")[2]
        return [f"{place_in(file, error)}: {type(error).__name__}: {last}"], True

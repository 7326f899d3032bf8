"""Small methods for tests, and the batches that all methods are checked with.

A method's own test file may add settings as `SMALL`. Settings that only fit the digits, on which whole runs are tested,
it calls `ON_DIGITS`.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge

from eagleray.config import load_run
from eagleray.config.registry import declared, find
from eagleray.contracts.batch import DataInfo
from eagleray.contracts.method import Method
from eagleray.runs.assemble import blueprint, build_method
from eagleray.runs.checkpoint import save_checkpoint
from eagleray.runs.method_checks import BATCH, INFO, NOW, batch_of, built, share
from eagleray.runs.record import Record

__all__ = ["BATCH", "INFO", "NOW", "batch_of", "share"]  # what the tests of methods use besides

METHODS = sorted(declared("method"))


def settings(name: str) -> list[str]:
    """Return settings that make the method small.

    They also make its test sharp, and include those of its test file.
    """
    needs = find("method", name).needs
    network = ["encoder.depth=1", "encoder.dim=32"] if "tokens" in needs else ["encoder.width=8"]
    small = own(name, "SMALL")
    return [f"method={name}", *([] if "encoder=pretrained" in small else network), *small]


def own(name: str, constant: str) -> list[str]:
    """Return settings from the method's own test file."""
    file = Path(__file__).parent / "methods" / f"test_{name}.py"
    return getattr(import_module(f"methods.test_{name}"), constant, []) if file.exists() else []


def variants(name: str) -> list[str]:
    """Return every other value of a method's choices, and 0 for every number that may be 0, as settings."""
    config = load_run(None, settings(name)).method.config
    found = []
    for key, field in type(config).model_fields.items():
        values = [*choices(field.annotation), *(0 for each in field.metadata if isinstance(each, Ge) and each.ge == 0)]
        found += [f"method.{key}={value}" for value in values if value != getattr(config, key)]
    return found


def choices(annotation: Any) -> list[Any]:
    """Return the values of a type that has few."""
    if annotation is bool:
        return [False, True]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in choices(part)]


def needed(name: str) -> list[str]:
    """Return values for settings without a default.

    No run could use them.
    """
    declaration = find("method", name)
    trained = ["encoder.run=somewhere"] if "trained_encoder" in declaration.needs else []
    return [*(f"method.{key}=somewhere" for key in declaration.required), *trained]


def finished_run(directory: Path, info: DataInfo, *overrides: str) -> Path:
    """Return the directory of a finished, untrained run.

    It has the initial weights.
    """
    run = load_run(None, list(overrides))
    method = build_method(run, info)
    record = Record.create(directory, name=directory.name, experiment="e", params={}, run=run.file())
    facts = {"step": 1, "blueprint": blueprint(run, method), "method": method.state_dict()}
    save_checkpoint(directory, facts, keep=1)
    record.finish("finished")
    return directory


def small(name: str, *more: str) -> Method:
    """Return a float64 method on a very small encoder."""
    return built(load_run(None, [*settings(name), *more]))

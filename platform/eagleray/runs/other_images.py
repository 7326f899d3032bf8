"""Refuse images that evaluators name beside the run's (`evaluate.NAME.data`)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from eagleray.config import Run
from eagleray.config.sections import DataChoice
from eagleray.contracts.errors import ConfigError
from eagleray.data.facts import facts_of


def check_others(run: Run) -> None:
    """Check the images that evaluators measure on beside the run's.

    Raises:
        ConfigError: they are missing, have no labels, or none are held out.
    """
    for name, choice in run.evaluate.others.items():
        with keys_named(name):
            if facts := facts_of(run.model_copy(update={"data": choice})):
                check_other(choice, labels=facts.labels is not None, validation=facts.has_validation)


def check_other(choice: DataChoice, *, labels: bool, validation: bool) -> None:
    """Check that images which an evaluator names have labels, and some held out.

    Raises:
        ConfigError: they have not.
    """
    if not labels:
        raise ConfigError(f"data={choice.title}: these images have no labels to measure by; name others")
    if not validation:
        raise ConfigError("data.validation=0 leaves no images to measure on; set it to 0.1")


@contextmanager
def keys_named(evaluator: str) -> Iterator[None]:
    """Write the keys of an evaluator's images in sentences that are raised as they are typed."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(re.sub(r"(?<![\w./-])data(?=[.=])", f"evaluate.{evaluator}.data", str(error))) from error

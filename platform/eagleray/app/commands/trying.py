"""A first look: one command that needs no data of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from eagleray.app import api
from eagleray.app.commands.training import run_sweep
from eagleray.app.line import Plain, app, only_settings, output, say
from eagleray.config import Sweep, load_sweep
from eagleray.contracts.errors import ConfigError
from eagleray.runs.record import Record


@app.command(name="try")
def try_(
    settings: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
    plain: Plain = False,
) -> None:
    """Run the quickstart, a sweep of a few minutes.

    It needs no account, no download and no GPU.
    """
    file, overrides = shipped("quickstart"), only_settings(settings)
    sweep = load_sweep(file, overrides)
    result = run_sweep(sweep, file, overrides, output(plain))
    trials = [record for record in Record.open(result.directory).children() if record.kind == "trial"]
    say(f"\n{against_chance(sweep, result)}\n{verdict(trials)}")


def shipped(name: str) -> Path:
    """Return the sweep file of a name: in the package, or of a checkout beside it.

    Raises:
        ConfigError: there is none.
    """
    package = Path(api.__file__).parents[1]
    for folder in (package / "sweeps", package.parents[1] / "sweeps"):
        if (file := folder / f"{name}.yaml").is_file():
            return file
    raise ConfigError(f"the sweep {name} is missing: install eagleray again")


def against_chance(sweep: Sweep, result: api.SweepResult) -> str:
    """Tell how much better than guessing the best trial is."""
    best = result.best
    if best is None or best.mean is None:
        return f"No trial measured {sweep.metric}."
    run = next(sweep.probes())
    names = run.data.declaration.load()(run.data.name, run.data.config).class_names()
    if "labels" not in sweep.metrics[sweep.metric].needs or not names:
        return f"The best trial reached {sweep.metric} {best.mean:.3f}."
    return (
        f"The best trial classifies {best.mean:.1%} of the images rightly ({sweep.metric}), "
        f"{best.mean * len(names):.1f} times chance (1 of {len(names)} classes)."
    )


def verdict(trials: list[Record]) -> str:
    """Tell whether embeddings have collapsed to a point."""
    collapsed = [record.name for record in trials if record.state == "collapsed"]
    if collapsed:
        return f"Collapse: {len(collapsed)} of {len(trials)} trials collapsed to a point: {', '.join(collapsed)}."
    spreads = [record.summary["z_std"] for record in trials if "z_std" in record.summary]
    spread = f" The least spread of their embeddings is {min(spreads):.2f} (1: even, 0: a point)." if spreads else ""
    return f"Collapse: none of {len(trials)} trials collapsed.{spread}"

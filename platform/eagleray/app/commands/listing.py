"""Commands that answer at once: lists, schemas, checks."""

import json
from pathlib import Path
from typing import Annotated

import typer

from eagleray.app.commands.plugin import check_file
from eagleray.app.line import app, console, only_settings, say
from eagleray.app.plan import counted, length, size
from eagleray.app.ready import check_run, check_sweep
from eagleray.config import Run, load_run, load_sweep
from eagleray.config.metrics import measuring
from eagleray.config.nested import read_tree
from eagleray.config.places import placed
from eagleray.config.plugin_files import PluginFile
from eagleray.config.registry import WORDS, Kind, declared, find, found_here
from eagleray.config.sweep_file import is_sweep
from eagleray.contracts.errors import ConfigError
from eagleray.runs.preflight import caution_of

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="one of them, with all its settings")]


@app.command()
def methods(name: Name = None) -> None:
    """List the methods, or the settings and recipes of one."""
    from eagleray.report.catalogue import recipes

    _list("method", name)
    for recipe, training in recipes(find("method", name)).items() if name else ():
        say(f"{recipe}: {training}")


@app.command()
def encoders(name: Name = None) -> None:
    """List the encoders, or the settings of one."""
    _list("encoder", name)


@app.command()
def datasets(name: Name = None) -> None:
    """List the datasets, or the settings of one."""
    _list("data", name)


@app.command()
def evaluators(name: Name = None) -> None:
    """List the evaluators, or explain the metrics of one."""
    from eagleray.app.terminal import table
    from eagleray.report.catalogue import METRICS, metrics

    if name is not None:
        _list("evaluator", name)
        console.print(table(METRICS, metrics(find("evaluator", name).values["metrics"])))
        return
    known = {**declared("evaluator"), **found_here("evaluator")}
    lines = [[one.name, one.summary, ", ".join(one.values["metrics"])] for one in known.values()]
    console.print(table(["evaluator", "what it is", "metrics"], lines))


@app.command()
def schema(kind: Annotated[str, typer.Argument(metavar="run|sweep")] = "run") -> None:
    """Print the JSON schema of run or sweep files."""
    from eagleray.config.schema import run_schema, sweep_schema

    schemas = {"run": run_schema, "sweep": sweep_schema}
    if kind not in schemas:
        raise ConfigError(f"there is a schema of run files and one of sweep files, but none of {kind!r}")
    print(json.dumps(schemas[kind](), indent=2))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a run or a sweep file, or a method's FILE.py")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
    full: Annotated[bool, typer.Option("--full", help="also decode the images and build the networks")] = False,
) -> None:
    """Say whether a run or sweep file can start; start nothing.

    Images are listed, not decoded. Of a method, encoder, dataset or evaluator of your own (FILE.py, or FILE.py:Class),
    check what it computes.
    """
    overrides = only_settings(settings)
    if PluginFile.of(str(file)):
        check_file(str(file), overrides)
        return
    if is_sweep(read_tree(file)):
        sweep = load_sweep(file, overrides)
        with placed(file, overrides):
            runs = check_sweep(sweep, full=full)
        say(f"{file} is a valid sweep: {sweep.search} search over {', '.join(sweep.vary)}, {size(sweep, runs)}")
    else:
        run = load_run(file, overrides)
        with placed(file, overrides):
            check_run(run, full=full)
        runs, what = [run], f"{run.method.name} with {run.encoder.name} on {run.data.name}"
        say(f"{file} is a valid run: {what}, {length(run)}")
    for names in dict.fromkeys(map(_measuring, runs)):
        say(f"measured by {names}")
    for caution in _cautions(runs):
        say(caution)


def _cautions(runs: list[Run]) -> list[str]:
    """Return what the images of runs that need labels do not show."""
    kinds = {json.dumps([run.file()["data"], run.labels.model_dump(mode="json")]): run for run in runs if run.labels}
    return list(dict.fromkeys(filter(None, map(caution_of, kinds.values()))))


def _measuring(run: Run) -> str:
    """List a run's evaluators: after every evaluation, and those of its end."""
    names: dict[str, list[str]] = {}
    for name in measuring(run):
        names.setdefault(run.evaluate.when(name), []).append(name)
    parts = {"always": f"every {counted(run.evaluate.every, 'epoch')}", "end": "at the end"}
    said = [f"{', '.join(names[when])} ({words})" for when, words in parts.items() if when in names]
    return "; ".join(said) or "nothing but its loss"


def _list(kind: Kind, name: str | None) -> None:
    from eagleray.app.terminal import table
    from eagleray.report.catalogue import SETTINGS, settings

    if name is not None:
        one = find(kind, name)
        say(f"{one.name}: {one.doc.strip()}\n")
        if lines := settings(one):
            # Only methods have recipes and ranges.
            heads = SETTINGS if kind == "method" else ("setting", "default", "meaning")
            console.print(table(heads, lines if kind == "method" else [[*line[:2], line[-1]] for line in lines]))
            say("")
        return
    key = kind if kind == "data" else WORDS[kind]
    lines = [
        [one.name, one.summary, ", ".join(f"{key}.{setting}" for setting in one.Config.model_fields)]
        for one in {**declared(kind), **found_here(kind)}.values()
    ]
    console.print(table([WORDS[kind], "what it is", "settings"], lines))

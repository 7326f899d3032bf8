"""Commands that answer at once: lists, schemas, checks."""

import json
from pathlib import Path
from typing import Annotated

import typer

from eagleray.app.commands.plugin import check_file
from eagleray.app.line import app, console, only_settings, say
from eagleray.config import Sweep, load_run, load_sweep
from eagleray.config.metrics import check_metric, metric_needs
from eagleray.config.nested import read_tree
from eagleray.config.plugin_files import PluginFile
from eagleray.config.registry import WORDS, Kind, declared, find, found_here
from eagleray.contracts.errors import ConfigError

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
) -> None:
    """Validate a run or sweep file; start nothing.

    Of a method, encoder, dataset or evaluator of your own (FILE.py, or FILE.py:Class), check what it computes.
    """
    overrides = only_settings(settings)
    if PluginFile.of(str(file)):
        check_file(str(file), overrides)
    elif "vary" in read_tree(file):
        loaded = load_sweep(file, overrides)
        unchecked = _check_labels(loaded)
        say(f"{file} is a valid sweep: {loaded.search} search over {', '.join(loaded.vary)}{unchecked}")
    else:
        run = load_run(file, overrides)
        say(f"{file} is a valid run: {run.method.name} with {run.encoder.name} on {run.data.name}")


def _check_labels(sweep: Sweep) -> str:
    """Check that images have the labels a metric needs.

    The images are listed, not read.

    Returns:
        Text for the user: what could not be checked, or nothing.

    Raises:
        ConfigError: the metric needs labels, and the images have none.
    """
    known: dict[str, tuple[bool, bool]] = {}
    for run in sweep.probes():
        if "labels" not in metric_needs(sweep.metric, run):
            continue
        key = json.dumps(run.file()["data"])
        if key not in known:
            source, share = run.data.declaration.load()(run.data.name, run.data.config), run.data.settings.validation
            try:
                known[key] = source.class_names() is not None, share > 0 or "validation" in source.parts()
            except ConfigError as error:
                return f"; whether its images have labels could not be checked here ({error})"
        labels, validation = known[key]
        check_metric(sweep.metric, run, labels=labels, validation=validation)
    return ""


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

"""All metrics, and which of them a run reports.

The loop, the method and the evaluators declare them.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cache

from eagleray.config.mistakes import nearest
from eagleray.config.nested import merged, parse_override
from eagleray.config.registry import Declaration, declared
from eagleray.config.run import Run, changed, leaves
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.metric import LOOP, TERM, Metric, Need

Table = Mapping[str, Metric]
LOSS = Metric("the loss of one of several methods that train together, before its weight", "lower", no_goal=TERM)
TEST = "test_"  # before the name of a metric that was measured on the test set
WITHOUT_LABELS = "label_free"  # what a sweep without labels is best compared by (docs/label-free.md)


@cache
def shipped() -> Table:
    """Return the metrics that ship with the project.

    Those of the loop and of the evaluators.
    """
    return _table([LOOP, *(one.values["metrics"] for one in declared("evaluator").values())])


@cache
def known() -> Table:
    """Return these and the methods' own.

    If methods give one name two meanings, one of them.
    """
    own = (one.values["metrics"] for one in declared("method").values())
    return {name: metric for table in (*own, shipped()) for name, metric in table.items()}


def metrics_of(run: Run) -> Table:
    """Return all metrics that a run's parts declare.

    Also those that it does not measure.

    Raises:
        ConfigError: two of them have the same name.
    """
    return _table([LOOP, _own(run), *(one.values["metrics"] for one in run.evaluate.evaluators.values())])


def meanings(run: Run) -> dict[str, str]:
    """Return the meanings of a run's metrics."""
    table, known = metrics_of(run), reported(run)
    return {name: table[name].meaning for name in ordered(known, table)}


def meaning_of(name: str, known: Mapping[str, str]) -> str:
    """Return what a metric means; one on the test set means the same there."""
    meaning = known.get(name.removeprefix(TEST), "")
    return f"{meaning}, on the test set" if meaning and name.startswith(TEST) else meaning


def reported(run: Run, *, labels: bool = True, validation: bool = True) -> set[str]:
    """Return the names of a run's final numbers.

    Without those of the test set.

    Args:
        run: the run.
        labels: whether its training images have labels.
        validation: whether images are held out of them.
    """
    measured = (run.evaluate.evaluators[name] for name in measuring(run, labels=labels and validation))
    return {*LOOP, *_own(run), *(name for one in measured for name in one.values["metrics"])}


def measuring(run: Run, *, labels: bool = True) -> list[str]:
    """Return the evaluators that measure a run; `labels` tells whether its data offer labels."""
    available = has(run, labels=labels)
    return [
        name
        for name, one in run.evaluate.evaluators.items()
        if run.evaluate.when(name) != "never" and needs(one) <= available
    ]


def measured_by(run: Run, evaluators: Collection[str], overrides: Iterable[str] = ()) -> Run:
    """Return a run that other evaluators measure, or with other settings of theirs.

    Args:
        run: the run.
        evaluators: the only ones; none: those of the run.
        overrides: `evaluate.NAME.KEY=VALUE`.

    Raises:
        ConfigError: there is no such evaluator, or a setting is wrong or of something else.
    """
    for text in overrides:
        if not text.startswith("evaluate."):
            raise ConfigError(f"{text} has no effect on a trained run; settings here are evaluate.NAME.KEY=VALUE")
    asked = {"evaluate.protocols": list(evaluators)} if evaluators else {}
    return changed(run, {**asked, **dict(leaves(merged(*map(parse_override, overrides))))})


def check_protocols(run: Run, *, labels: bool, validation: bool) -> None:
    """Check that the evaluators that a run asks for by name can measure it.

    Args as `reported`.

    Raises:
        ConfigError: it lacks what one of them needs.
    """
    available = has(run, labels=labels and validation)
    able = [name for name, one in run.evaluate.evaluators.items() if needs(one) <= available]
    for protocol in run.evaluate.protocols or ():
        if protocol not in able:
            why = _what_it_lacks(protocol, run, f"name others ({', '.join(able)})", labels)
            raise ConfigError(f"evaluate.protocols: {protocol} cannot measure this run: {why}")


def check_metric(
    name: str, run: Run, *, every_epoch: str | None = None, labels: bool = True, validation: bool = True
) -> None:
    """Check that runs can be compared by a metric.

    Args:
        name: the metric.
        run: one of the runs.
        every_epoch: the setting that compares runs after every epoch, such as `scheduler=asha`; None: no setting.
        labels: whether the training images have labels.
        validation: whether images are held out of them.

    Raises:
        ConfigError: the run does not report it, or not when it is needed; or it is no goal.
    """
    names = reported(run, labels=labels, validation=validation)
    if name not in names:
        raise ConfigError(f"metric={name}: {_why_missing(name, run, names, labels)}")
    check_goal(f"metric={name}", name, metrics_of(run), names)
    evaluator = _evaluator(name, run)
    if every_epoch is None or evaluator is None:
        return
    if run.evaluate.every != 1:
        raise ConfigError(
            f"{every_epoch} compares metric={name} after every epoch, "
            f"and run.evaluate.every={run.evaluate.every}; set it to 1"
        )
    if run.evaluate.when(evaluator) != "always":
        raise ConfigError(
            f"{every_epoch} compares metric={name} after every epoch; "
            f"set run.evaluate.{evaluator}.when=always, or use another metric"
        )


def check_goal(said: str, name: str, table: Table, names: Iterable[str]) -> None:
    """Check that something may be chosen by a metric.

    Args:
        said: how the user named it, such as `metric=loss`.
        name: the metric; also as measured on the test set.
        table: what is known of the metrics.
        names: those that could be taken instead.

    Raises:
        ConfigError: it is declared to be no goal; with the reason, and the metrics that are goals.
    """
    metric = table.get(name.removeprefix(TEST))
    if metric is not None and metric.no_goal:
        raise ConfigError(f"{said} is no goal: {metric.no_goal}; choose by one of {_goals(names, table)}")


def needs(evaluator: Declaration) -> frozenset[Need]:
    """Return what an evaluator requires: everything its metrics need."""
    metrics: Table = evaluator.values["metrics"]
    return frozenset[Need]().union(*(metric.needs for metric in metrics.values()))


def has(run: Run, *, labels: bool) -> frozenset[Need]:
    """Return what a run offers to evaluators.

    `labels` tells whether its data offer labels.
    """
    available: dict[Need, bool] = {
        "labels": labels,
        # All methods declare views of the training images, except those that see only labelled images.
        "two_views": "only_labels" not in run.method.declaration.needs,
        "tokens": run.encoder.declaration.values["has_tokens"],
        "stages": run.encoder.declaration.values["has_stages"],
        "error": run.method.declaration.values["has_error"],
        "classifier": run.labels is not None,
        "network": True,
    }
    return frozenset(need for need, is_available in available.items() if is_available)


def mode_of(name: str, table: Table) -> str | None:
    """Return a metric's better direction, if any.

    `max`, `min`, or None for neither; the same on the test set.
    """
    metric = table.get(name.removeprefix(TEST))
    return metric and metric.mode


def headlines(table: Table) -> list[str]:
    """Return the metrics to show in comparisons.

    First those that most runs have.
    """
    return sorted((name for name in table if table[name].headline), key=lambda name: len(table[name].needs))


def ordered(names: Iterable[str], table: Table) -> list[str]:
    """Sort names for display.

    Headlines, the same on the test set, then the others as in the table.
    """
    first = headlines(table)
    order = [*first, *(TEST + name for name in first), *table]
    places = {name: place for place, name in enumerate(dict.fromkeys(order))}
    return sorted(names, key=lambda name: (places.get(name, len(places)), name))


def _table(parts: Iterable[Table]) -> Table:
    table: dict[str, Metric] = {}
    for part in parts:
        if twice := sorted(set(table) & set(part)):
            raise ConfigError(f"two metrics are called {twice[0]}: rename one, in the method or evaluator that has it")
        table |= part
    return table


def _own(run: Run) -> Table:
    """Return the metrics that the method declares, and those of methods beside it, with their names before them."""
    own = run.method.declaration.values["metrics"]
    if not run.beside:
        return own
    tasks = {
        f"{task.title}_{name}": replace(metric, meaning=f"{metric.meaning}, of {task.title}")
        for task in run.beside
        for name, metric in {"loss": LOSS, **task.declaration.values["metrics"]}.items()
    }
    return _table([own, {f"{run.method.title}_loss": LOSS}, tasks])


def _evaluator(metric: str, run: Run) -> str | None:
    return next((name for name, one in run.evaluate.evaluators.items() if metric in one.values["metrics"]), None)


def _why_missing(name: str, run: Run, names: set[str], labels: bool) -> str:
    table, evaluator = metrics_of(run), _evaluator(name, run)
    if name.startswith(TEST):
        return "the test set is used once, by the winner; trials are compared on validation"
    if evaluator is None:
        return f"{run.method.name} reports no such number{nearest(name, table)} (there are: {_goals(names, table)})"
    if run.evaluate.when(evaluator) != "never":
        free = f"use one that needs no labels ({_goals(names, table)})"
        if WITHOUT_LABELS in names:
            free = f"set metric={WITHOUT_LABELS}, whose choices docs/label-free.md judges, or {free}"
        return _what_it_lacks(evaluator, run, free, labels)
    if run.evaluate.protocols is None:
        return f"it is not measured with run.evaluate.{evaluator}.when=never"
    return f"it is not measured, as run.evaluate.protocols does not name {evaluator}"


def _what_it_lacks(evaluator: str, run: Run, free: str, labels: bool) -> str:
    """Tell which need of an evaluator a run lacks; `free` says what needs no labels."""
    reasons: dict[Need, str] = {
        "classifier": f"{run.method.name} has no classifier; only a method that learns from labels reports it",
        "error": f"{run.method.name} reproduces no images; autoencoders and dictionaries do, as method=vae",
        "two_views": f"{run.method.name} declares no views, so there are no two views to compare",
        "tokens": f"encoder={run.encoder.name} has no tokens; use encoder=vit_tiny",
        "stages": f"encoder={run.encoder.name} names no stages; define `stages` and has_stages=True in it",
        "labels": f"there are no validation images to measure it on; set run.data.validation=0.1, or {free}"
        if labels
        else f"these images have no labels; {free}",
    }
    missing = needs(run.evaluate.evaluators[evaluator]) - has(run, labels=False)
    return next(why for need, why in reasons.items() if need in missing)


def _goals(names: Iterable[str], table: Table) -> str:
    """List the metrics that are goals, or may be with a `mode`."""
    return ", ".join(ordered((name for name in names if not table[name].no_goal), table))

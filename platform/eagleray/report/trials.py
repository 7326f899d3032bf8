"""What is compared: which runs are repetitions of one point, and which must not be averaged.

The unit is one sweep. Runs are repetitions if they differ in their seed alone, besides what cannot change their
numbers (`config.settings.NEUTRAL`, and the place of images that are the same). A run with the settings and the seed of
another is a copy, not evidence.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from eagleray.config.metrics import ordered, shipped
from eagleray.config.search_points import SEARCHES, SEVERAL
from eagleray.config.settings import is_neutral
from eagleray.report.leaderboard import TrialResult
from eagleray.report.recorded import Recorded, from_directory
from eagleray.runs.record import CHANGES, Record

# A name decides the settings of its own; they are named in a note, and need no columns.
LEADS = {
    "data.name": ("data.",),
    "recipe": ("method.", "optimizer."),
    "method.name": ("method.", "optimizer.", "labels.", "encoder."),
    "encoder.name": ("encoder.",),
}
# Runs that differ in these measure different things, or had different budgets.
OTHER_TASK = ("data.", "evaluate.", "image_size")
OTHER_BUDGET = ("epochs", "steps", "labels.per_class", "labels.fraction", "labels.imbalance")
DIGEST = "data.digest"  # of the images and labels: if it is on record, it counts
PLACES = ("data.root", "data.labels")  # and where these lie does not
CODE = "code"  # the version of the code, where sweeps of several versions are compared


@dataclass(frozen=True)
class Group:
    """What one name stands for: a sweep, or runs outside sweeps."""

    name: str
    runs: tuple[Recorded, ...]  # trials and floors of the sweep, or the runs
    sweep: Recorded | None = None
    varied: tuple[str, ...] = ()  # the keys that the sweep varies
    note: str = ""  # what else the name could have meant

    @property
    def binned(self) -> list[str]:
        """The varied keys whose values are drawn from a range."""
        return [key for key in self.varied if not str(self._of_sweep(f"vary.{key}", "[")).startswith("[")]

    @property
    def metric(self) -> str | None:
        return self._of_sweep("metric")

    @property
    def mode(self) -> str | None:
        return self._of_sweep("mode")

    @property
    def shared(self) -> dict[str, Any]:
        """The settings that all trials of the sweep have."""
        params = self.sweep.params if self.sweep else {}
        own = {key for key in params if key in SEARCHES or key.startswith("vary.") or params[key] == SEVERAL}
        return {key: value for key, value in params.items() if key not in own}

    def _of_sweep(self, key: str, default: Any = None) -> Any:
        return self.sweep.params.get(key, default) if self.sweep else default


@dataclass(frozen=True)
class Comparison:
    """Runs that are ready to be analysed together."""

    groups: tuple[Group, ...]
    trials: list[TrialResult]
    runs: list[Recorded]  # of the trials, in the same order
    owners: list[list[str]]  # for each of them, the names of all groups that have its point
    varied: list[str]
    notes: list[str]  # what was left out, and why
    other_task: list[str]  # the differing settings that make the runs measure different things
    other_budget: list[str]  # those that give them different budgets

    @property
    def obstacle(self) -> str:
        """Why no finding can be drawn; empty: it can."""
        keys = [*self.other_task, *self.other_budget]
        return f"these runs differ in {', '.join(keys)}" if keys else ""

    @property
    def binned(self) -> list[str]:
        """The keys whose values some sweep drew from a range; listed values, and what is no number, are levels."""
        drawn = {key for group in self.groups for key in group.binned}
        points = [trial.params for trial in self.trials if not trial.floor]
        return [key for key in self.varied if key in drawn and all(isinstance(p[key], int | float) for p in points)]


def group_of(name: str, runs: Sequence[Recorded]) -> Group:
    """Return the newest sweep among some runs.

    Without a sweep, return the runs themselves.
    """
    sweeps = sorted((run for run in runs if run.kind == "sweep"), key=lambda run: run.created)
    if not sweeps:
        return Group(name, tuple(runs))
    newest = sweeps[-1]
    children = tuple(run for run in runs if run.parent == newest.key)
    note = _others(name, sweeps, [run for run in runs if run.kind == "run"])
    return Group(newest.name, children, newest, tuple(newest.varied), note)


def of_sweep(parent: Record, varied: Iterable[str]) -> Group:
    """Read a sweep from its directory."""
    sweep = from_directory(parent)
    return Group(sweep.name, tuple(map(from_directory, parent.children())), sweep, tuple(varied))


def _others(name: str, sweeps: Sequence[Recorded], alone: Sequence[Recorded]) -> str:
    parts = [f"{len(sweeps)} sweeps"] if len(sweeps) > 1 else []
    parts += [f"{len(alone)} run{'s' * (len(alone) > 1)} outside sweeps"] if alone else []
    if not parts:
        return ""
    names = [run.name for run in [*sweeps[-2::-1], *alone]]
    listed = ", ".join([*names[:5], *(["…"] if len(names) > 5 else [])])
    return f"{name} has {' and '.join(parts)}; this is the newest sweep, {sweeps[-1].name}. By name: {listed}"


def compared(groups: Sequence[Group]) -> Comparison:
    """Find out what can be compared in some groups of runs.

    Copies are counted once; a trial that differs from its sweep is left out; both are noted.
    """
    groups, notes = _with_images(groups), [group.note for group in groups if group.note]
    members = [(group, run) for group in groups for run in _fitting(group, notes)]
    if len(groups) > 1 and len({_codes(group) for group in groups}) > 1:
        members = [(group, replace(run, params={**run.params, CODE: _codes(group)})) for group, run in members]
    else:
        notes += [
            f"{group.name}: its runs were made by {len(codes)} versions of the code ({', '.join(codes)})"
            for group in groups
            if len(codes := _codes(group).split(", ")) > 1
        ]
    owners: dict[str, dict[str, None]] = {}
    for group, run in members:
        owners.setdefault(_point(group, run), {})[group.name] = None
    members = _without_copies(members, notes)
    notes += [
        f"{run.name} has gone on with other numbers of workers ({run.tags[CHANGES]}): its numbers agree up to rounding"
        for _, run in members
        if CHANGES in run.tags
    ]
    runs = [run for _, run in members]
    differing = _differing(groups, [run for run in runs if run.kind != "floor"])
    is_sweep = len(groups) == 1 and groups[0].sweep is not None
    varied = list(groups[0].varied) if is_sweep else _columns(differing, notes)
    task, budget = ([], []) if is_sweep else _incomparable(groups, list(differing))
    trials, of = list(_results(members, varied, groups)), [list(owners[_point(*member)]) for member in members]
    return Comparison(tuple(groups), trials, runs, of, varied, notes, task, budget)


def _fitting(group: Group, notes: list[str]) -> Iterator[Recorded]:
    """Yield the runs that are as their sweep says, and used its images."""
    first: dict[str, str | None] = {}
    for run in sorted(group.runs, key=lambda run: run.created):
        first.setdefault(_data_of(run), run.images)
    for run in group.runs:
        wrong = [k for k, value in group.shared.items() if not is_neutral(k) and run.params.get(k) != value]
        if run.kind == "trial" and wrong:
            its, others = (", ".join(f"{k}={of.get(k)}" for k in wrong) for of in (run.params, group.shared))
            notes.append(f"{run.name} is left out: it was trained with {its}, and its sweep has {others}")
        elif run.kind == "trial" and run.images != first[_data_of(run)]:
            notes.append(f"{run.name} is left out: the images had changed since the first trials of its sweep")
        else:
            yield run


def _codes(group: Group) -> str:
    return ", ".join(sorted({run.code for run in group.runs if run.code}))


def settings_of(run: Recorded) -> dict[str, Any]:
    """Return the settings that decide a run's numbers, without its seed.

    The digest of its images counts, if it is on record, and not where they lie.
    """
    if run.images is None:
        return _settings(run)
    return {**{key: value for key, value in _settings(run).items() if key not in PLACES}, DIGEST: run.images}


def _settings(run: Recorded) -> dict[str, Any]:
    """Return what was set; the words of a whole variant (`run`) repeat settings."""
    return {key: value for key, value in run.params.items() if key not in ("seed", "run") and not is_neutral(key)}


def _data_of(run: Recorded) -> str:
    return json.dumps({key: value for key, value in _settings(run).items() if key.startswith("data.")}, sort_keys=True)


def _known_by(runs: Sequence[Recorded]) -> list[dict[str, Any]]:
    """Return the settings by which people know runs apart.

    Equal images are the same wherever they lie; others are known by their place, or by their digest if they changed
    there.
    """
    images = {run.images for run in runs}
    if len(images) == 1 and None not in images:
        return [settings_of(run) for run in runs]
    has_changed = len({(_data_of(run), run.images) for run in runs}) > len({_data_of(run) for run in runs})
    return [{**_settings(run), DIGEST: run.images} if has_changed else _settings(run) for run in runs]


def _with_images(groups: Sequence[Group]) -> list[Group]:
    """Give runs whose images are not on record those of runs with the same settings."""
    known = {_data_of(run): run.images for group in groups for run in group.runs if run.images}
    filled = [
        tuple(replace(run, images=run.images or known.get(_data_of(run))) for run in each.runs) for each in groups
    ]
    return [replace(group, runs=runs) for group, runs in zip(groups, filled, strict=True)]


def _point(group: Group, run: Recorded) -> str:
    """Return what repetitions have in common.

    A population changes settings during training, so its trials are points of their own.
    """
    changes = [f"{group.name} {run.name}"] if any(tag.startswith("changed_after_epoch_") for tag in run.tags) else []
    kind = run.tags.get("floor", "")
    return json.dumps([kind, settings_of(run), *changes], sort_keys=True, default=str)


def _without_copies(members: Iterable[tuple[Group, Recorded]], notes: list[str]) -> list[tuple[Group, Recorded]]:
    """Drop runs with the settings and seed of another.

    A finished one is kept, in the group that was named first: of a sweep's the first, of others the newest.
    """
    copies: dict[tuple[str, int | None], list[tuple[Group, Recorded]]] = {}
    for group, run in members:
        copies.setdefault((_point(group, run), run.seed), []).append((group, run))
    kept = []
    for same in copies.values():
        kept.append(min(same, key=partial(_rank, same[0][0])))
    chosen = {run.key for _, run in kept}
    dropped = [run.name for same in copies.values() for _, run in same if run.key not in chosen and run.kind != "floor"]
    if dropped:
        repeat, listed = "repeats" if len(dropped) == 1 else "repeat", ", ".join(dropped[:3])
        more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
        notes.append(f"{listed}{more} {repeat} the settings and the seed of another run, which counts once")
    return kept


def _rank(first: Group, member: tuple[Group, Recorded]) -> tuple[bool, bool, int]:
    """Rank copies: the lowest is kept."""
    group, run = member
    return run.state != "finished", group != first, run.created if run.kind == "trial" else -run.created


def _differing(groups: Sequence[Group], runs: Sequence[Recorded]) -> dict[str, list[Any]]:
    """Return the settings that differ, each with its value in every run.

    Those that sweeps vary come first.
    """
    tables = _known_by(runs)
    keys = dict.fromkeys(key for group in groups for key in group.varied if key != "run")
    keys |= dict.fromkeys(key for table in tables for key in table)
    columns = {key: [table.get(key) for table in tables] for key in keys}
    return {key: values for key, values in columns.items() if len(set(values)) > 1}


def _columns(differing: Mapping[str, list[Any]], notes: list[str]) -> list[str]:
    """Return the keys to show, without those that a name decides."""
    decided = dict[str, str]()
    for lead in (lead for lead in LEADS if lead in differing):
        values = differing[lead]
        new = [
            key
            for key, others in differing.items()
            if key.startswith(LEADS[lead]) and key not in LEADS and key not in decided
            if len(set(zip(values, others, strict=True))) == len(set(values))
        ]
        notes += [f"{lead} decides also {', '.join(new)}"] if new else []
        decided |= dict.fromkeys(new, lead)
    return [key for key in differing if key not in decided]


def _incomparable(groups: Sequence[Group], differing: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the keys that make tasks and budgets differ.

    What all groups vary is what is asked; so is a budget if nothing else differs.
    """
    asked = set.intersection(*(set(group.varied) for group in groups))
    task = [key for key in differing if key.startswith(OTHER_TASK) and key not in asked]
    budget = [key for key in differing if key in OTHER_BUDGET and key not in asked and list(differing) != [key]]
    return task, budget


def _results(
    members: Iterable[tuple[Group, Recorded]], varied: Sequence[str], groups: Sequence[Group]
) -> Iterator[TrialResult]:
    labels: dict[str, str] = {}
    for group, run in members:
        place, floor = _point(group, run), run.tags.get("floor", "")
        of_group = f"{group.name} " if len(groups) > 1 and group.sweep and not floor else ""
        label = f"{of_group}{run.tags.get('point' if floor else 'label', run.name)}"
        if place not in labels and label in labels.values():  # the same floor on other data
            label = f"{label} of {group.name}"
        yield TrialResult(
            f"{of_group}{run.name}",
            {} if floor else {key: _value(run, key) for key in varied},
            point=labels.setdefault(place, label) if floor else place,
            label=run.tags["label"] if floor else labels.setdefault(place, label),
            seed=run.seed,
            floor=floor,
            state=run.state,
            metrics=run.metrics,
            message=run.message,
            epochs=run.epochs,
        )


def _value(run: Recorded, key: str) -> Any:
    """Return the value of a key; None: unset.

    Another method's setting is a dash, not unset.
    """
    section = key.partition(".")[0]
    belongs = f"{section}.name" not in LEADS or key in run.params
    return run.params.get(key) if belongs else "–"


def everything_csv(comparison: Comparison) -> str:
    """Return every run with all settings and metrics as CSV."""
    settings = list(dict.fromkeys(key for run in comparison.runs for key in run.params))
    metrics = ordered({name for run in comparison.runs for name in run.metrics}, shipped())
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(["of", "run", "kind", "state", "code", *settings, *metrics])
    for owners, run in zip(comparison.owners, comparison.runs, strict=True):
        values = [*(run.params.get(key, "") for key in settings), *(run.metrics.get(name, "") for name in metrics)]
        table.writerow([" ".join(owners), run.name, run.kind, run.state, run.code, *values])
    return written.getvalue()

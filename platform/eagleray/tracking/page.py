"""Prepare the page of an experiment: its view, and the question over it.

Both are tags of the experiment. An experiment may have several sweeps, each with a view of its own; the description is
that of the newest.
"""

from collections.abc import Mapping

from eagleray.runs.record import Record
from eagleray.tracking.descriptions import NOTE, experiment_description, tags_for
from eagleray.tracking.links import RUNS, view_key
from eagleray.tracking.views import runs_view, sweep_view

# When the newest sweep or run of an experiment began (ms since 1970), the key of its view. Pages do not show mlflow.*.
NEWEST = "mlflow.eagleray.newest"


def page_tags(record: Record, experiment_id: str, run_id: str) -> dict[str, str]:
    """Return the tags that a sweep or a run wants its experiment to have.

    There are none for the runs of a sweep.
    """
    if record.above:
        return {}
    newest = {NEWEST: f"{record.created} {view_of(record)}"}
    if record.kind != "sweep":
        return {**runs_view(record), **newest}
    return {**sweep_view(record, run_id), **newest, NOTE: experiment_description(record, experiment_id, run_id)}


def view_of(record: Record) -> str:
    """Return the key of the view that shows a record."""
    sweep = record.parent or record
    return view_key(sweep.key) if sweep.kind == "sweep" else RUNS


def new_tags(wanted: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that an experiment lacks.

    `eagleray sync` may send an older sweep after a newer one: then the description stays, as it does if a person has
    changed it.
    """
    if not wanted:
        return {}
    tags = {name: value for name, value in wanted.items() if name not in (NEWEST, NOTE)}
    if began(wanted) >= began(before):
        tags |= {NEWEST: wanted[NEWEST], **tags_for(wanted.get(NOTE, ""), before)}
    return {name: value for name, value in tags.items() if before.get(name) != value}


def began(tags: Mapping[str, str]) -> int:
    """Return when the newest sweep or run of an experiment began.

    It is in ms since 1970, 0 for an experiment that is not ours.
    """
    return int(tags.get(NEWEST, "0").split()[0])


def newest_view(tags: Mapping[str, str]) -> str:
    """Return the key of the newest view of one of our experiments."""
    return tags[NEWEST].split()[1]

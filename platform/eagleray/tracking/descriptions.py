"""Put into words what MLflow's pages say above their tables.

These are the names of runs, and descriptions in Markdown. A description that a person has changed is never overwritten:
next to each one that we wrote, a tag keeps its digest.
"""

import hashlib
from collections.abc import Mapping

from eagleray.runs.record import Record
from eagleray.tracking.links import report_path, view_key, view_path

NOTE = "mlflow.note.content"  # MLflow shows it as the description of a run or an experiment
OURS = "mlflow.eagleray.description"  # the digest of the description that we wrote last; mlflow.* are not shown


def display_name(record: Record) -> str:
    """Return the name of a run on MLflow's pages."""
    if record.kind == "floor":
        return f"floor: {record.tags['point']}, seed {record.params['seed']}"
    return record.title


def description(record: Record) -> str:
    """Return the description of a run.

    A sweep's begins with its question and its finding; the meanings of the metrics follow.
    """
    parts = [*_answer(record), *(["The best run of the sweep."] if "winner" in record.tags else [])]
    meanings = [f"- **{name}**: {meaning}" for name, meaning in record.meanings.items()]
    return "\n\n".join([*parts, *(["What the metrics mean:", "\n".join(meanings)] if meanings else [])])


def experiment_description(sweep: Record, experiment_id: str, run_id: str) -> str:
    """Return the description of an experiment.

    Its first line, the question of the newest sweep, is all that MLflow shows before a click. The finding and links
    follow.
    """
    view = view_key(sweep.key)
    links = {
        "runs": view_path(experiment_id, view),
        "charts": view_path(experiment_id, view, charts=True),
        "report": report_path(experiment_id, run_id),
    }
    line = ", ".join(f"[{name}](#{path})" for name, path in links.items())
    return "\n\n".join([*_answer(sweep), f"{display_name(sweep)}: {line}"])


def tags_for(text: str, before: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a description.

    There are none if it is empty, or a person has changed the one that is there.
    """
    now = before.get(NOTE)
    if not text or (now is not None and before.get(OURS) != _digest(now)):
        return {}
    return {NOTE: text, OURS: _digest(text)}


def _answer(record: Record) -> list[str]:
    if record.kind != "sweep":
        return []
    finding = record.tags.get("finding")
    return [part for part in (record.file().get("question"), f"**{finding}**" if finding else None) if part]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""Conclude a sweep: keep what its runs leave, and write its report."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from eagleray.app.exporting import export_encoder
from eagleray.config import Run, Sweep
from eagleray.config.budget import OVER
from eagleray.contracts.errors import ConfigError, Damaged, Skipped
from eagleray.contracts.files import write
from eagleray.contracts.paths import shared
from eagleray.data.images import Data
from eagleray.report.analysis import Analysis, analyse
from eagleray.report.finding import finding
from eagleray.report.heatmap import plot_heatmap
from eagleray.report.page import page
from eagleray.report.text import csv_text, markdown, runs_csv
from eagleray.report.trials import Comparison, compared, of_sweep
from eagleray.runs.assemble import opened_once
from eagleray.runs.begun import left
from eagleray.runs.checkpoint import keep_weights, newest_checkpoint
from eagleray.runs.failures import close_unfinished
from eagleray.runs.preview import VIEWS, preview
from eagleray.runs.record import Record
from eagleray.runs.restore import recorded_run
from eagleray.runs.writer import keep_data
from eagleray.storage.mirror import mirrored

if TYPE_CHECKING:
    from eagleray.ray_backend.callbacks import Watch

BEST = 3  # points of a sweep of which everything is kept
WORK = "parts of the conclusion"  # runs put in order, the report written
MOST_VIEWS = 6  # points whose views a sweep's page shows


def concluded(sweep: Sweep, directory: Path, watch: "Watch") -> Analysis:
    """Keep what the runs of a sweep leave, and write its report.

    While runs are left, nothing is removed.
    """
    parent = Record.open(directory)
    found = _analysed(sweep, parent)
    names = best_runs(found[1])
    is_over = not left(sweep, directory)
    images_of, children = opened_once(), parent.children()
    parts = len(children) + 1  # the report
    for done, child in enumerate(children, 1):
        is_trial = child.kind == "trial"
        with mirrored(child.directory):
            _keep_facts(child, images_of)
            if is_trial and (sweep.keep == "all" or child.name in names):
                keep_encoder(child)
            elif is_trial and is_over and child.state != "failed":  # that one may be tried again
                _reduce(child)
        watch.work(WORK, done, parts)
    conclude(sweep, parent, found)
    watch.work(WORK, parts, parts)
    return found[1]


def best_runs(analysis: Analysis) -> set[str]:
    """Return the names of the runs of the winner and of the best points after it, three in all."""
    winner = [analysis.winner] if analysis.winner else []
    rows = [*winner, *(row for row in analysis.tried if row not in winner)][:BEST]
    return {name for row in rows for name in row.runs}


def _keep_facts(child: Record, images_of: Callable[[Run], Data]) -> None:
    """Keep the images of a floor, and of a trial of several workers the picture of its views."""
    has_views = child.kind == "floor" or (child.artifacts / VIEWS).exists()
    if has_views and child.data() is not None:
        return
    run = recorded_run(child)
    if child.data() is None:
        keep_data(run, child, images_of(run))
    if not has_views:
        preview(run, child.artifacts / VIEWS)


def _reduce(child: Record) -> None:
    """Keep the weights of a trial alone; what is damaged is named, and stays as it is."""
    try:
        _note_checkpoint(child, keep_weights(child.directory))
    except Damaged as error:
        warnings.warn(f"{error}. It is left as it is", Skipped, stacklevel=2)


def _analysed(sweep: Sweep, parent: Record) -> tuple[Comparison, Analysis]:
    comparison = compared([of_sweep(parent, sweep.vary)])
    analysis = analyse(comparison.trials, sweep.vary, sweep.metric, sweep.mode, comparison.binned, sweep.metrics)
    return comparison, analysis


def conclude(sweep: Sweep, parent: Record, found: tuple[Comparison, Analysis] | None = None) -> Analysis:
    """Write a sweep's report, and end its record.

    The report goes into the artifacts of the sweep.

    Args:
        sweep: the sweep.
        parent: its record.
        found: its analysis, if it was made already.
    """
    comparison, analysis = found or _analysed(sweep, parent)
    trials = comparison.trials
    has_picture = plot_heatmap(analysis, parent.artifacts / "heatmap.png", sweep.question)
    unfinished = [each for each in trials if each.state != "finished"]
    notes = [f"{each.name} {each.state}{f': {each.message}' if each.message else ''}" for each in unfinished]
    runs_left = left(sweep, parent.directory)
    notes += [*comparison.notes, *runs_left]
    text = markdown(
        analysis,
        name=sweep.name,
        question=sweep.question,
        picture="heatmap.png" if has_picture else None,
        notes=notes,
    )
    html = page(
        analysis,
        name=sweep.name,
        question=sweep.question,
        notes=notes,
        pictures=_pictures(analysis, parent, has_map=has_picture),
        settings=parent.params,
    )
    tables = {"leaderboard.csv": csv_text(analysis), "runs.csv": runs_csv(analysis, trials)}
    for file, content in {"report.md": text, "report.html": html, **tables}.items():
        write(parent.artifacts / file, content)
    if runs_left:
        close_unfinished(parent, OVER)
    parent = parent.tag({"finding": finding(analysis)})
    best = analysis.winner
    numbers = {} if best is None or best.mean is None else {sweep.metric: best.mean, **best.metrics}
    parent.finish(*("stopped", OVER) if runs_left else ("finished", ""), summary=numbers)
    return analysis


def _pictures(analysis: Analysis, parent: Record, *, has_map: bool) -> dict[str, Path]:
    """Return the pictures of a sweep's page by their captions.

    The views are those of the winner; of the best points where views are varied.
    """
    pictures = {f"{analysis.metric} by what was varied": parent.artifacts / "heatmap.png"} if has_map else {}
    varies_views = any(key == "run" or key.startswith("augment.") for key in analysis.varied)
    shown = analysis.tried[:MOST_VIEWS] if varies_views else [analysis.winner] if analysis.winner else []
    for row in shown:
        views = parent.directory / "trials" / row.runs[0] / "artifacts" / VIEWS
        if views.exists():
            pictures[f"the views of {row.name}"] = views
    return pictures


def _note_checkpoint(record: Record, saved: Path | None) -> None:
    if saved:
        record.tag({"checkpoint": shared(saved.absolute())})


def keep_encoder(record: Record) -> None:
    """Export the encoder of a run, if it has finished."""
    saved = newest_checkpoint(record.directory)
    _note_checkpoint(record, saved)
    if saved and record.state == "finished":
        try:
            export_encoder(record, "safetensors", record.artifacts)
        except ConfigError as error:  # a network that nobody else can load is still a result
            warnings.warn(f"{record.directory}: {error}", stacklevel=2)

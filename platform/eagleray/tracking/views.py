"""Prepare the tables and charts with which MLflow's pages open.

A view is a tag of the experiment, `mlflow.sharedViewState.KEY`: the state of MLflow's page (3.17) as JSON. A link with
`viewStateShareKey=KEY` opens it (`links.py`). An older server ignores the tag and shows its own table.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from eagleray.config.metrics import headlines, shipped
from eagleray.runs.record import Record
from eagleray.tracking.gains import gain_name
from eagleray.tracking.links import RUNS, view_key

TAG = "mlflow.sharedViewState."
# What tells runs outside a sweep apart; MLflow leaves out a column that no run has.
SETTINGS = ("method.name", "encoder.name", "data.name", "epochs", "batch_size", "optimizer.lr", "seed")
ATTRIBUTES = {"Models": 110, "Dataset": 230}  # columns of MLflow's own, with their widths in pixels
NAME = {"attributes.`Run Name`": 250}
LAST = ("runDateAndNestInfo", "duration")  # what MLflow's page calls the columns that it always shows


def sweep_view(sweep: Record, run_id: str) -> dict[str, str]:
    """Return the view of a sweep, as tags of its experiment.

    The best run comes first. Columns are what was varied, the metric and how far it is above each floor; charts are the
    parallel coordinates of these keys, the metric, and the views that trials have seen.

    Args:
        sweep: the record of the sweep.
        run_id: of the sweep in MLflow.
    """
    file = sweep.file()
    metric, varied = file["metric"], list(file["vary"])
    others = [name for name in _headlines(sweep) if name != metric]
    columns = [
        *_named("metrics", [metric, *(gain_name(metric, kind) for kind in file["floor"])]),
        *_named("params", [*varied, "seed"]),
        *_named("tags", ["winner"]),
        *_named("metrics", others),
        *_named("attributes", ATTRIBUTES),
    ]
    state = {
        **_table(metric, file["mode"], f"tags.`mlflow.parentRunId` = '{run_id}'", columns),
        "runsExpanded": {run_id: True},
        "isAccordionReordered": True,  # keeps our sections first
        "compareRunSections": [
            _section("answer", metric, columns=2),
            _section("images", "views of each run", columns=1, cardHeight=560),
        ],
        "compareRunCharts": _charts(metric, varied),
    }
    return {TAG + view_key(sweep.key): json.dumps(state, separators=(",", ":"))}


def runs_view(record: Record) -> dict[str, str]:
    """Return the view of runs outside sweeps, of which this is the newest."""
    first, *others = _headlines(record)
    columns = [
        *_named("metrics", [first, *others, "loss"]),
        *_named("params", SETTINGS),
        *_named("attributes", ATTRIBUTES),
    ]
    state = _table(first, "max", "tags.kind = 'run'", columns)
    return {TAG + RUNS: json.dumps(state, separators=(",", ":"))}


def _headlines(record: Record) -> list[str]:
    """Return the headline metrics: those of Eagleray, and those of a run's own evaluators, as its record says."""
    return list(dict.fromkeys([*headlines(shipped()), *record.tags.get("headlines", "").split()]))


def _table(metric: str, mode: str, search: str, columns: Sequence[str]) -> dict[str, Any]:
    return {
        "selectedColumns": columns,
        # MLflow would put its own wide columns first, and numbers and settings behind the edge of the window.
        "columnOrder": ["0", *NAME, *columns, *LAST],
        "columnWidths": NAME | {column: _width(column) for column in columns},
        "searchFilter": search,
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": mode == "min",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "runsHiddenMode": "SHOWALL",  # in charts; MLflow's own default is the first ten
    }


def _charts(metric: str, varied: Sequence[str]) -> list[dict[str, Any]]:
    coordinates = {"selectedParams": list(varied), "selectedMetrics": [metric], "showAllRuns": False}
    line = {"selectedMetricKeys": [metric], "xAxisKey": "step", "scaleType": "linear", "xAxisScaleType": "linear"}
    smoothing = {"lineSmoothness": 0, "range": {}, "yAxisKey": "metric", "yAxisExpressions": []}
    return [
        _chart("PARALLEL", "answer", **coordinates),
        _chart("BAR", "answer", metricKey=metric),
        _chart("LINE", "answer", metricKey=metric, **line, **smoothing, useGlobalXaxisKey=True),
        _chart("IMAGE", "images", imageKeys=["views"], step=0, showRunParams=False),
    ]


def _chart(kind: str, section: str, **what: Any) -> dict[str, Any]:
    place = {"uuid": f"eagleray-{kind.lower()}", "type": kind, "metricSectionId": section}
    return {**place, "runsCountToCompare": 100, "deleted": False, "isGenerated": False, **what}


def _section(identity: str, name: str, **layout: int) -> dict[str, Any]:
    shown = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return {"uuid": identity, "name": name, **layout, **shown}


def _width(column: str) -> int:
    """Return a width in which the name of a column can be read, in pixels."""
    name = column.split("`")[1]
    return ATTRIBUTES.get(name, max(90, 30 + 7 * len(name)))


def _named(kind: str, names: Iterable[str]) -> list[str]:
    return [f"{kind}.`{name}`" for name in names]

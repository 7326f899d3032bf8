"""Link to MLflow's pages.

Its pages are one program in the browser, so a page is named after the `#` of an address.
"""

from urllib.parse import quote

TRAINING = "workflowType=machine_learning"  # otherwise the pages open with traces of language models
RUNS = "runs"  # the view of runs outside sweeps


def view_key(key: str) -> str:
    """Return the key of a sweep's view (`views.py`), from the key of its record."""
    return key[:8]


def view_path(experiment_id: str, view: str, *, charts: bool = False) -> str:
    """Return the path of the table or the charts of runs.

    Args:
        experiment_id: of the runs.
        view: its key, from `view_key`, or RUNS.
        charts: whether the page opens with charts instead of the table.
    """
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"/experiments/{quote(experiment_id)}/runs?{TRAINING}&viewStateShareKey={view}{mode}"


def view_url(base: str, experiment_id: str, view: str, *, charts: bool = False) -> str:
    """Return the address of `view_path` on the pages at `base` (`ui_base`)."""
    return f"{base.rstrip('/')}/#{view_path(experiment_id, view, charts=charts)}"


def report_path(experiment_id: str, run_id: str) -> str:
    """Return the path of a sweep's report among its files."""
    return f"/experiments/{quote(experiment_id)}/runs/{quote(run_id)}/artifacts/report.html?{TRAINING}"


def experiments_url(base: str) -> str:
    """Return the address of the list of all experiments."""
    return f"{base.rstrip('/')}/#/experiments?{TRAINING}"

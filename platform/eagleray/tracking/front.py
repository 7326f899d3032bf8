"""List the pages with which a person begins."""

from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError
from eagleray.tracking.links import experiments_url, view_url
from eagleray.tracking.page import began, newest_view
from eagleray.tracking.store import connect, paged, patient, reason

SHOWN = 5  # experiments


def newest_pages(uri: str, base: str) -> dict[str, str]:
    """Return the addresses of the newest experiments, by their names.

    The last address is that of the list of all.

    Args:
        uri: of the store.
        base: the address of MLflow's pages (`ui_base`).

    Raises:
        ConfigError: the store cannot be read.
    """
    try:
        with patient():
            experiments = [*paged(connect(uri).search_experiments, max_results=1000)]
    except Exception as error:
        raise ConfigError(f"MLflow at {without_password(uri)} cannot be read: {reason(error)}.") from error
    ours = sorted(filter(lambda each: began(each.tags), experiments), key=lambda each: -began(each.tags))
    pages = {each.name: view_url(base, each.experiment_id, newest_view(each.tags)) for each in ours[:SHOWN]}
    return {**pages, "all experiments": experiments_url(base)}

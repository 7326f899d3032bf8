"""Where Ray keeps its own files of a run or sweep, which nothing reads afterwards: where the run is."""

import shutil
from pathlib import Path
from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem

from eagleray.contracts.paths import address_of
from eagleray.storage.store import answering, filesystem


def storage_of(directory: Path) -> dict[str, Any]:
    """Return the arguments of a RunConfig that name the storage of a run."""
    if (address := address_of(directory)) is None:
        return {"storage_path": str(directory)}
    own = PyFileSystem(FSSpecHandler(filesystem(directory)))  # the settings of the store are then the same
    return {"storage_path": address.partition("://")[2], "storage_filesystem": own}


def clear(directory: Path) -> None:
    """Remove Ray's own files."""
    shutil.rmtree(directory / "ray", ignore_errors=True)
    if (address := address_of(directory)) is not None:
        own, store = f"{address.partition('://')[2]}/ray", filesystem(directory)
        with answering(directory):
            if store.find(own):
                store.rm(own, recursive=True)

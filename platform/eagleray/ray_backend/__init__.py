"""Run the loop on Ray.

Groups of workers, sweeps, schedulers and searches are here. Nothing else imports ray.
"""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from eagleray.contracts.errors import ConfigError

# Parts that may change are used by elastic.py, placement.py, preemption.py, spare.py, tokens.py and trainer.py.
KNOWN = "2.60"

with suppress(PackageNotFoundError):
    if not version("ray").startswith(f"{KNOWN}."):
        raise ConfigError(
            f"Ray {version('ray')} is installed, and Eagleray works with Ray {KNOWN}: "
            f"pip install 'ray[train,tune]=={KNOWN}.*'"
        )

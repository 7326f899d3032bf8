"""Keep Ray from losing cores when Tune takes back what it has asked for.

Ray 2.60 loses the cores and GPUs of a placement group that is removed while a node prepares it, some milliseconds after
it was asked for: nobody uses them, and nobody gets them. Tune does that when a trial ends at once, as recorded ones do
in a resumed sweep; later a trial of several workers would wait for those cores forever. In a loop that asks and removes
after up to 6 ms, it happened within 360 rounds.
"""

import time

from ray.air.execution import PlacementGroupResourceManager, ResourceRequest
from ray.tune.execution import tune_controller

PREPARED = 0.1  # seconds in which a node has prepared what fits, on a machine that is busy


class PreparedGroups(PlacementGroupResourceManager):
    """Removes no placement group that may be in preparation."""

    asked = float("-inf")  # when, the last time

    def request_resources(self, resource_request: ResourceRequest) -> None:
        super().request_resources(resource_request)
        self.asked = time.monotonic()

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
        self._wait()
        super().cancel_resource_request(resource_request)

    def clear(self) -> None:
        self._wait()
        super().clear()

    def _wait(self) -> None:
        time.sleep(max(0.0, self.asked + PREPARED - time.monotonic()))


def keep_cores() -> None:
    """Let the sweeps of this process use `PreparedGroups`, for which Tune has no argument."""
    tune_controller.PlacementGroupResourceManager = PreparedGroups  # pyright: ignore[reportPrivateImportUsage]

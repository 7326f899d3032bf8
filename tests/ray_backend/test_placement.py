"""Ray loses no cores when a sweep takes back what it has asked for."""

import random
import time
from collections.abc import Iterator

import pytest
import ray
from ray.air.execution import ResourceRequest
from ray.tune.execution import tune_controller

from eagleray.ray_backend.placement import PREPARED, PreparedGroups, keep_cores
from ray_sessions import two_cores


def test_sweeps_ask_through_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tune_controller, "PlacementGroupResourceManager", None)
    keep_cores()
    assert vars(tune_controller)["PlacementGroupResourceManager"] is PreparedGroups


@pytest.fixture
def session() -> Iterator[None]:
    with two_cores():
        yield


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("end", ["cancel", "clear"])
def test_what_is_taken_back_at_once_is_removed_when_it_is_prepared(session: None, end: str):
    """It may happen on the first round or the hundredth: so the time is asserted, too."""
    groups, one = PreparedGroups(), ResourceRequest([{"CPU": 1}])
    for _ in range(20):
        groups.request_resources(one)
        began = time.monotonic()
        time.sleep(random.uniform(0, 0.006))
        groups.cancel_resource_request(one) if end == "cancel" else groups.clear()
        assert time.monotonic() - began > PREPARED - 0.001
    limit = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 2:
        assert time.monotonic() < limit, "cores are lost"
        time.sleep(0.1)

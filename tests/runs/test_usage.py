"""What a run uses of its machine: cores, memory, and a GPU if torch uses one."""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from eagleray.runs.usage import Usage

OF_CPU = {"system/cpu_cores_used", "system/memory_megabytes"}


class NVMLError(Exception):
    """What pynvml raises if a GPU does not tell."""


def refusing(error: Exception) -> Callable[[], int]:
    def utilization() -> int:
        raise error

    return utilization


def with_gpu(patch: pytest.MonkeyPatch, utilization: Callable[[], int], *, pynvml: bool, used: bool = True) -> None:
    cuda = SimpleNamespace(is_initialized=lambda: used, memory_reserved=lambda: 3_000_000, utilization=utilization)
    patch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    patch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NVMLError) if pynvml else None)


def test_a_gpu_that_tells_is_measured(monkeypatch: pytest.MonkeyPatch):
    with_gpu(monkeypatch, lambda: 87, pynvml=True)
    measured = Usage().measured()
    assert {key: measured[key] for key in measured.keys() - OF_CPU} == {
        "system/gpu_memory_megabytes": 3.0,
        "system/gpu_utilization_percent": 87.0,
    }


@pytest.mark.parametrize(
    "error", [NVMLError("not supported"), RuntimeError("no driver"), ModuleNotFoundError("amdsmi")]
)
def test_a_gpu_that_does_not_tell_ends_no_run(monkeypatch: pytest.MonkeyPatch, error: Exception):
    with_gpu(monkeypatch, refusing(error), pynvml=True)
    assert Usage().measured().keys() - OF_CPU == {"system/gpu_memory_megabytes"}


def test_without_pynvml_torch_is_not_asked_and_without_a_gpu_nothing_is(monkeypatch: pytest.MonkeyPatch):
    with_gpu(monkeypatch, refusing(AssertionError("asked")), pynvml=False)
    assert Usage().measured().keys() - OF_CPU == {"system/gpu_memory_megabytes"}
    with_gpu(monkeypatch, refusing(AssertionError("asked")), pynvml=True, used=False)
    assert Usage().measured().keys() == OF_CPU

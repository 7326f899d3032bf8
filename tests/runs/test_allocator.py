"""Freed memory is kept: measured in page faults, not in time."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

FAULTS = """
import resource, sys, torch
from torch import nn
from eagleray.runs.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
network = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3), nn.ReLU())
images = torch.randn(256, 3, 32, 32)
def step():
    network(images).mean().backward()  # the largest tensors have 33 MB
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is meant")
def test_what_a_step_frees_the_next_one_gets_without_a_page_fault():
    assert faults("kept") < faults("as it was") / 5

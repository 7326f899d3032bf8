"""A shortcut that is planted in noise is learnt without the guard against it, and not with it.

The images have no content: whatever is learnt is the shortcut.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from eagleray.config import load_run
from eagleray.contracts.batch import Batch, DataInfo, Progress
from eagleray.runs.assemble import build_method

pytestmark = pytest.mark.slow

SIDE, GRID, COUNT = 30, 3, 32
CELL = SIDE // GRID
INFO = DataInfo(image_size=SIDE, channels=3, samples=1000, classes=None, batch_size=COUNT)
CONTEXT = ["method=context_prediction", "method.grid=3", "method.tile=0.8", "method.coarse=0", "method.width=128"]
JIGSAW = ["method=jigsaw", "method.grid=3", "method.permutations=10", "method.width=32"]

Plant = Callable[[torch.Generator], Tensor]


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(COUNT, *shape, generator=draw)


def lens(draw: torch.Generator) -> Tensor:
    """Shift red away from the middle of the image by a pixel in outer cells, and blue towards it."""
    grey, places = normal(draw, SIDE + 2, SIDE + 2), torch.arange(SIDE)
    outward = places // CELL - 1
    shifted = [places + 1 - shift * outward for shift in (1, 0, -1)]
    return torch.stack([grey[:, rows][:, :, rows] for rows in shifted], 1)


def light(draw: torch.Generator) -> Tensor:
    """Let the light come from below, on the right."""
    ramp = torch.linspace(-1, 1, SIDE)
    return normal(draw, 3, SIDE, SIDE) + 3 * ramp[:, None] + 1.5 * ramp


def lines(draw: torch.Generator) -> Tensor:
    """Draw a line along each side of each cell, of any brightness, which continues in the next cell."""
    images = 0.3 * normal(draw, SIDE + 2, SIDE + 2)
    for place in range(0, SIDE + 1, CELL):
        for first in range(1, SIDE, CELL):
            along = slice(first, first + CELL)
            images[:, place : place + 2, along] = 2 * normal(draw, 1, 1)
            images[:, along, place : place + 2] = 2 * normal(draw, 1, 1)
    return images[:, None, 1:-1, 1:-1].expand(-1, 3, -1, -1)


def learnt(settings: list[str], plant: Plant, metric: str, steps: int) -> float:
    """Train on images that are new at each step; return the mean of a metric over the last twenty."""
    torch.manual_seed(0)
    method = build_method(load_run(None, [*settings, "encoder.width=8"]), INFO).train()
    optimizer, found = torch.optim.AdamW(method.parameters(), 3e-3), list[float]()
    for step in range(steps):
        images = plant(torch.Generator().manual_seed(step))
        result: Any = method(Batch([images], torch.arange(COUNT)), Progress(step, steps, 0, 1))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        found.append(float(result.metrics[metric]))
    return sum(found[-20:]) / 20


def test_colours_that_a_lens_shifts_tell_the_place_unless_a_tile_has_one_channel():
    settings = [*CONTEXT, "method.tile=0.8"]
    assert learnt([*settings, "method.one_channel=0"], lens, "placed", 150) > 0.9
    assert learnt([*settings, "method.one_channel=1"], lens, "placed", 150) < 0.2


def test_light_tells_the_place_unless_tiles_are_standardised(monkeypatch: pytest.MonkeyPatch):
    assert learnt(JIGSAW, light, "solved", 100) < 0.17
    monkeypatch.setattr("eagleray_methods.jigsaw.standardised", lambda tiles: tiles)
    assert learnt(JIGSAW, light, "solved", 100) > 0.9


def test_lines_that_continue_tell_neighbours_unless_there_are_gaps():
    """Of neighbours that share a side; those at a corner share nothing."""
    settings = [*CONTEXT, "method.one_channel=1"]
    assert learnt([*settings, "method.tile=1"], lines, "placed", 400) > 0.5
    assert learnt([*settings, "method.tile=0.8"], lines, "placed", 400) < 0.25

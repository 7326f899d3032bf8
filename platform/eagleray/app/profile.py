"""Profile a run: a few of its steps, and what takes their time."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from eagleray.app.directories import REFUSAL, folder_of, new_directory
from eagleray.config import Run
from eagleray.config.settings import settings
from eagleray.contracts.files import make_folder, place
from eagleray.loop import train
from eagleray.runs.assemble import assemble
from eagleray.runs.profile import Profile
from eagleray.runs.record import Record


def profile_run(run: Run, steps: int, *, address: str | None = None) -> tuple[dict[str, Any], Path]:
    """Train a few steps of a run, evaluate and save once, and say what takes their time.

    It leaves no run behind: nothing to resume, to compare or to send.

    Args:
        run: the run that is to become faster.
        steps: that count.
        address: of a Ray cluster, for several workers.

    Returns:
        What `artifacts/profile.json` holds, and its directory.

    Raises:
        ConfigError: a setting does not fit; nothing is left behind.
        Diverged: the loss became NaN or infinite.
    """
    device = None if address is None else torch.device("cpu")  # a cluster has GPUs of its own
    data = assemble(run, device=device).data  # raises every config error before a directory is created
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    experiment = run.tracking.experiment
    home = folder_of(run.tracking.runs, experiment)
    make_folder(home, REFUSAL)
    with tempfile.TemporaryDirectory(prefix=".profile-", dir=home) as folder:
        record = Record.create(folder, name="profile", experiment=experiment, params=settings(run), run=run.file())
        if run.workers > 1:
            from eagleray.ray_backend.workers import train_on_workers

            reports = train_on_workers(run, record.directory, address=address, profile=steps)
        else:
            reports = Profile(run, steps).reports(train, record.directory, data=data)
        for _ in reports:
            pass
        directory = new_directory(home, "profile", run.method.title)
        make_folder(directory / "artifacts")
        for name in ("run.yaml", "artifacts/profile.json"):
            place(record.directory / name, directory / name)
    return json.loads((directory / "artifacts" / "profile.json").read_text()), directory

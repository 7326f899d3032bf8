"""Ray Train's trainer of a group, with what a group of ours needs and nothing that only takes time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from torch import distributed

from eagleray.ray_backend.elastic import DivisorPolicy


class Trainer(TorchTrainer):
    """Starts no process for the datasets of Ray Data, of which there are none; an elastic one has our policy."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            given |= {"scaling_policy": DivisorPolicy(scaling_config=self.scaling_config)}
        return super()._initialize_and_run_controller(**given)


@dataclass
class FileConfig(TorchConfig):
    """Lets the workers of one machine find each other through a file.

    Torch's own server for that listens for every other machine, too.
    """

    folder: str = ""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return FileBackend


class FileBackend(_TorchBackend):
    """Sets up torch's process group through a file."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        assert isinstance(backend_config, FileConfig)
        place = Path(backend_config.folder, f"rendezvous-{uuid4().hex}").absolute()  # each group needs a new one
        place.parent.mkdir(parents=True, exist_ok=True)
        alike, world = (backend_config.backend, place.as_uri()), len(worker_group)
        ray.get([worker_group.execute_single_async(rank, meet, *alike, rank, world) for rank in range(world)])


def meet(backend: str, place: str, rank: int, world: int) -> None:
    """Join torch's process group at a place."""
    distributed.init_process_group(backend, init_method=place, rank=rank, world_size=world)

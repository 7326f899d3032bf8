"""Ray Train's trainer of a group, with what a group of ours needs and nothing that only takes time."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import distributed

from eagleray.ray_backend.elastic import DivisorPolicy
from eagleray.ray_backend.signals import here

PATIENCE = 20.0  # seconds in which a group that is ended may give back its share of the machines


class Trainer(TorchTrainer):
    """Starts no process for the datasets of Ray Data, of which there are none; an elastic one has our policy.

    Another thread can end it.
    """

    _controller: Any = None
    _is_ended = False

    def end(self) -> None:
        """End the group, if there is one, and `fit`, which raises an error of Ray's; another thread may do so."""
        self._is_ended = True
        if self._controller is not None:
            with suppress(RayError):  # it ends itself before it can answer
                ray.get(self._controller.abort.remote(), timeout=PATIENCE)
            ray.kill(self._controller)

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            given |= {"scaling_policy": DivisorPolicy(scaling_config=self.scaling_config)}
        with_driver = NodeAffinitySchedulingStrategy(here(), soft=False)
        options = {"scheduling_strategy": with_driver, "runtime_env": {"env_vars": get_env_vars_to_propagate()}}
        actor: Any = ray.remote(num_cpus=0, **options)(TrainController)
        self._controller = actor.remote(**given)  # Ray's own method keeps it for itself
        if self._is_ended:
            self.end()
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())


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

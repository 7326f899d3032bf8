"""Several methods on one encoder, their losses added."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from eagleray.contracts.batch import Batch, EpochView, Progress, StepResult
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.contracts.view import View


@dataclass(frozen=True)
class Task:
    """A method beside another."""

    method: Method
    weight: float  # of its loss


class Multitask(Method):
    """A method and tasks beside it, which train its encoder together: loss + sum over tasks of weight * loss.

    Each sees its own views, in passes of its own. The main method is what is evaluated and kept: its encoder or
    teacher, its embeddings, its classifier. The encoder's rate and decay are its own too, those of the tasks' heads are
    theirs. Methods that change the encoder come before those that copy or average it: with colorization among them all
    see luma alone, which is the harmonised input of the paper. Numbers of the tasks have their names before them.

    Source: Doersch, Zisserman 2017, Multi-task Self-Supervised Visual Learning, https://arxiv.org/abs/1708.07860. There
    every task has images of its own, here all see the same ones; gradients are added for one step in both. Of its four
    tasks, motion segmentation needs videos and is not here; its exemplars are distinguished by a triplet loss, here by
    a class each.

    Args:
        name: of the main method.
        main: the main method, built with the same encoder as the others.
        tasks: by name.
    """

    def __init__(self, name: str, main: Method, tasks: Mapping[str, Task]):
        super().__init__(main.encoder, main.config, main.data)
        self.name, self.main, self.tasks = name, main, dict(tasks)
        self.beside = nn.ModuleList(task.method for task in tasks.values())  # their weights are trained too

    @property
    def methods(self) -> dict[str, Method]:
        """All methods by name, the main one first."""
        return {self.name: self.main, **{name: task.method for name, task in self.tasks.items()}}

    @property
    def views(self) -> tuple[View, ...]:
        return tuple(view for method in self.methods.values() for view in method.views)

    @property
    def labelled_views(self) -> tuple[View, ...]:
        return self.main.labelled_views

    @property
    def backbone(self) -> nn.Module:
        return self.main.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        views = iter(batch.views)
        own = {name: [next(views) for _ in method.views] for name, method in self.methods.items()}
        result = self.main(replace(batch, views=own[self.name]), progress)
        loss, numbers = result.loss, {**result.metrics, f"{self.name}_loss": result.loss.detach()}
        for name, task in self.tasks.items():
            found = task.method(Batch(own[name], batch.indices), progress)
            loss = loss + task.weight * found.loss
            numbers |= {f"{name}_{key}": value for key, value in {"loss": found.loss.detach(), **found.metrics}.items()}
        return replace(result, loss=loss, metrics=numbers)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        tasks = [group for task in self.tasks.values() for group in task.method.parameter_groups()]
        return [*tasks, ParameterGroup(self.encoder), *self.main.parameter_groups()]  # the last one of a weight counts

    def before_epoch(self, epoch: EpochView) -> None:
        self.main.before_epoch(epoch)
        for task in self.tasks.values():
            task.method.before_epoch(replace(epoch, labelled=None))

    def before_step(self, progress: Progress) -> None:
        for method in self.methods.values():
            method.before_step(progress)

    def after_step(self, progress: Progress) -> None:
        for method in self.methods.values():
            method.change_encoder()
        for method in self.methods.values():
            method.after_step(progress)

    def encode(self, images: Tensor) -> Tensor:
        return self.main.encode(images)

    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        tasks = {
            f"{title} ({name})": made
            for name, task in self.tasks.items()
            for title, made in task.method.picture(images).items()
        }
        return {**self.main.picture(images), **tasks}

    def error(self, images: Tensor) -> Tensor:
        return self.main.error(images)

    def classify(self, images: Tensor) -> Tensor:
        return self.main.classify(images)

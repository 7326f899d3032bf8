"""Everything that defines a run, validated before anything starts."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, model_validator
from pydantic.fields import FieldInfo

from eagleray.config.mistakes import booleans, sentences, unending, wrong
from eagleray.config.nested import CHOSEN, branch, merged, parse_override, read_tree
from eagleray.config.places import placed
from eagleray.config.registry import Declaration, Kind, find
from eagleray.config.sections import (
    Augment,
    Checkpoints,
    Chosen,
    DataChoice,
    EncoderChoice,
    Evaluate,
    Labels,
    MethodChoice,
    Settled,
    Strict,
    Task,
    Tracking,
    evaluate_with,
)
from eagleray.config.told import Target
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.ranges import IntRange, LogUniform, is_range
from eagleray.contracts.recipe import Recipe, Recipes

Model = TypeVar("Model", bound=BaseModel)

DEFAULT_METHOD = "simclr"
LABELS = {"labels", "only_labels"}  # the needs of methods that use labels


class Run(Strict, frozen=True):
    """One complete training run."""

    method: MethodChoice
    encoder: EncoderChoice
    data: DataChoice
    augment: Augment = Augment()
    recipe: Annotated[
        Literal["small", "paper"],
        Field(description="which of the method's recipes: for small data and short runs, or the paper's"),
    ] = "small"
    optimizer: Recipe
    beside: Annotated[
        tuple[Task, ...],
        Field(
            description="methods that train the same encoder beside the run's, their losses added: names, or mappings "
            "of a name, its settings and loss_weight (1)"
        ),
    ] = ()
    koleo: Annotated[
        float,
        LogUniform(0.01, 1.0),
        Field(
            ge=0,
            description="weight of a term beside the method's loss that moves the features of each image away from the "
            "nearest of another image in the step; DINOv2's, of two crops, is 0.2; 0: none",
        ),
    ] = 0.0
    batch_size: Annotated[
        int, IntRange(32, 1024), Field(ge=2, description="images in a step, over all workers together")
    ] = 256
    epochs: Annotated[
        int | None, Field(ge=1, description="passes over the training images; null if steps are given")
    ] = 10
    steps: Annotated[
        int | None,
        Field(ge=1, description="updates of the weights in all, for epochs; the last epoch ends with the last of them"),
    ] = None
    seed: Annotated[int, Field(ge=0, le=10**9, description="of the weights, the order, the views and the splits")] = 0
    image_size: Annotated[
        int | None, Field(ge=4, le=8192, description="side of the views in pixels; null: that of the images")
    ] = None
    labels: Labels | None = None
    workers: Annotated[int, Field(ge=1, le=10_000, description="processes that train together")] = 1
    min_workers: Annotated[
        int | None,
        Field(ge=1, description="go on with as few, a divisor of workers, while machines are missing; null: with all"),
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: a GPU if there is one")] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], Field(description="auto: bf16 where the hardware supports it")
    ] = "auto"
    threads: Annotated[int | None, Field(ge=1, le=4096, description="of torch on the CPU; null: all cores")] = None
    evaluate: Annotated[SerializeAsAny[Evaluate], Field(default_factory=lambda: Evaluate.model_validate({}))]
    checkpoints: Checkpoints = Checkpoints()
    tracking: Tracking = Tracking()
    notify: Target = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, tree: Any) -> Any:
        """Add defaults from the method: encoder, recipe, length, labels."""
        tree = {**tree, **_named(tree)}
        # An unknown method is reported together with the other mistakes, when its section is validated.
        method = _known("method", tree["method"]["name"]) or find("method", DEFAULT_METHOD)
        recipes: Recipes = method.values["recipes"]
        small = tree.get("recipe", "small") == "small"
        if small:
            tree["method"] = {**recipes.small_settings, **tree["method"]}
            if isinstance(beside := tree.get("beside"), list | tuple):
                tree["beside"] = [_with_small_settings(task) for task in beside]
        if isinstance(tree.setdefault("optimizer", {}), Mapping):
            recipe = (recipes.small if small else recipes.paper).model_dump()
            tree["optimizer"] = {**recipe, **_fitting(tree["optimizer"], recipe)}
        if not small and recipes.paper_steps and tree.get("epochs") is None and "steps" not in tree:
            tree["steps"] = recipes.paper_steps
        if tree.get("steps") is not None:
            tree = {"epochs": None, **tree}
        if method.needs & LABELS:
            ratio = {"ratio": 1} if "only_labels" in method.needs else {}
            labels = tree.get("labels")
            tree["labels"] = {**ratio, **labels} if isinstance(labels, Mapping) else (labels or ratio)
        return tree

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise wrong(f"steps={self.steps} and epochs={self.epochs} exclude each other; set one to null")
        if self.epochs is None and self.steps is None:
            raise wrong("epochs=null leaves nothing to train; set it, or steps")
        needs = self.method.declaration.needs
        if "tokens" in needs and not self.encoder.declaration.values["has_tokens"]:
            raise wrong(
                f"encoder={self.encoder.name}: {self.method.name} works on a ViT's patches; use encoder=vit_tiny"
            )
        only = self.method.declaration.values["only_encoder"]
        if only not in (None, self.encoder.name):
            raise wrong(f"encoder={self.encoder.name}: {self.method.name} trains {only} alone; use encoder={only}")
        self._check_tasks()
        if self.evaluate.size and self.encoder.declaration.values["has_tokens"]:
            raise wrong(
                f"evaluate.size={self.evaluate.size}: encoder={self.encoder.name} has a position for each patch, and "
                "takes images of image_size alone; remove it"
            )
        if self.koleo and "only_labels" in needs:
            raise wrong(f"koleo={self.koleo:g} takes unlabelled images, and {self.method.name} has none; remove it")
        if "trained_encoder" in needs and self.encoder.name != "pretrained":
            raise wrong(
                f"encoder={self.encoder.name}: {self.method.name} starts from a trained run; use encoder=pretrained "
                f"encoder.run=DIRECTORY"
            )
        if self.labels is not None and not needs & LABELS:
            raise wrong(f"labels: {self.method.name} uses no labels; remove the section")
        if self.labels is not None and "only_labels" in needs and self.labels.ratio != 1:
            raise wrong(
                f"labels.ratio={self.labels.ratio}: {self.method.name} uses no unlabelled images, a step has "
                f"batch_size={self.batch_size} labelled ones; remove it"
            )
        if self.batch_size % self.workers:
            near = max(1, round(self.batch_size / self.workers)) * self.workers
            raise wrong(
                f"batch_size={self.batch_size} cannot be shared by workers={self.workers}; "
                f"the nearest that can is {near}"
            )
        if self.labels is not None:
            self._check_labelled_share(self.labels.ratio)
        if self.workers % self.fewest_workers:
            fewer = [each for each in range(1, self.workers) if self.workers % each == 0]
            listed = ", ".join(map(str, fewer)) or "none"
            raise wrong(
                f"min_workers={self.min_workers} does not divide workers={self.workers}, so that it could not share a "
                f"step as they do; those that can: {listed}"
            )
        return self

    def _check_tasks(self) -> None:
        """Refuse methods beside the run's that cannot train its encoder on unlabelled views."""
        names = [self.method.title]
        for task in self.beside:
            needs, only = task.declaration.needs, task.declaration.values["only_encoder"]
            if task.title in names:
                raise wrong(f"beside has {task.title} twice, or it is the run's method; name each once")
            if needs & {"trained_encoder", *LABELS}:
                what = "labels" if needs & LABELS else "a trained run"
                raise wrong(f"beside: {task.title} needs {what}; it can be the run's method, beside which others are")
            if ("tokens" in needs and not self.encoder.declaration.values["has_tokens"]) or only not in (
                None,
                self.encoder.name,
            ):
                raise wrong(f"beside: {task.title} does not train encoder={self.encoder.name}; remove it")
            names.append(task.title)
        if self.beside and "only_labels" in self.method.declaration.needs:
            raise wrong(f"beside: {self.method.name} sees no unlabelled images, from which the others learn; remove it")

    @property
    def collapsed_loss(self) -> float | None:
        """What the loss is if all views agree; None: it does not show it, or other terms are added."""
        return None if self.beside or self.koleo else self.method.declaration.values["collapsed_loss"]

    @property
    def fewest_workers(self) -> int:
        """The number of workers below which it waits for machines."""
        return self.min_workers or self.workers

    def _check_labelled_share(self, ratio: int) -> None:
        """Refuse labelled images that workers cannot share.

        The step would not be a single process's.
        """
        size, workers = self.batch_size, self.workers
        if size < ratio or size // ratio % workers:
            fits = [each for each in range(1, size // workers + 1) if size // each % workers == 0]
            near = min(fits, key=lambda each: abs(each - ratio))
            raise wrong(
                f"labels.ratio={ratio} leaves {size // ratio} labelled images in a step of batch_size={size}, which "
                f"workers={workers} cannot share; the nearest that fits is {near}"
            )

    @property
    def chosen(self) -> dict[str, Chosen]:
        """All that is chosen by name, by its key."""
        others = {f"evaluate.{name}.data": one for name, one in self.evaluate.others.items()}
        return {"method": self.method, "encoder": self.encoder, "data": self.data, **others}

    def file(self) -> dict[str, Any]:
        """Return the resolved run file, as JSON values."""
        return self.model_dump(mode="json")


def epochs_of(file: Mapping[str, Any], samples: int | None) -> int | None:
    """Return the epochs of a run, of which the last may be short.

    Args:
        file: of the run (`Run.file`).
        samples: images that it trains on; None: unknown.

    Returns:
        None: they follow from its steps and the images, and these are unknown.
    """
    if (steps := file.get("steps")) is None:
        return file["epochs"]
    return None if samples is None else -(-steps // max(1, samples // file["batch_size"]))


def load_run(file: Path | None, overrides: list[str]) -> Run:
    """Read a run from a file and overrides.

    Both are optional; overrides are `key=value`.

    Raises:
        ConfigError: names every wrong key with its place in the file and the nearest right one, every wrong value with
            the allowed range.
    """
    with placed(file, overrides):
        return validated(Run, run_tree(file, overrides))


def run_tree(file: Path | None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read the settings of a run file and overrides, without defaults.

    Raises:
        ConfigError: the file is none, or that of a sweep.
    """
    tree = read_tree(file) if file else {}
    if "vary" in tree:
        raise ConfigError(f"{file} is a sweep file, as it has `vary`: use `eagleray sweep {file}`")
    # Overrides are merged first, so that their order does not matter: `method.momentum=0.9 method=byol` works too.
    return merged(tree, merged(*map(parse_override, overrides)))


def read_run(file: Mapping[str, Any]) -> Run:
    """Return the run that `Run.file` wrote.

    Validators of a method's own Config do not run a second time.

    Raises:
        ConfigError: as `load_run`.
    """
    return validated(Run, file, _settings_in(file))


def changed(run: Run, values: Mapping[str, Any]) -> Run:
    """Return a run with some dotted keys changed.

    New values are validated like typed ones.

    Raises:
        ConfigError: as `load_run`.
    """
    file, changes = run.file(), merged(*(branch(key, value) for key, value in values.items()))
    tree, typed = merged(file, changes), _settings_in(changes)
    kept = {
        section: keys & _settings_in(file)[section] - typed[section] for section, keys in _settings_in(tree).items()
    }
    return validated(Run, tree, kept)


def _settings_in(tree: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return keys of sections whose settings are declared elsewhere."""
    tasks = (set(task) for task in tree.get("beside", ()) if isinstance(task, Mapping))
    return {**{section: set(tree.get(section, {})) for section in CHOSEN}, "beside": set().union(*tasks)}


def validated(
    model: type[Model], tree: Mapping[str, Any], recorded: Mapping[str, Collection[str]] | None = None
) -> Model:
    """Validate a tree.

    Args:
        model: `Run` or `Sweep`.
        tree: as read from a file or typed.
        recorded: section -> keys whose values have been validated before.

    Raises:
        ConfigError: each mistake on a line of its own.
    """
    try:
        instance, mistakes = model.model_validate(tree, context=recorded), []
    except ValidationError as error:
        instance, mistakes = None, error.errors()
    known = run_keys(tree) if model is Run else _all_keys(model)
    told = [*booleans(leaves(tree), known), *sentences(mistakes, known)] or [*unending(leaves(tree), known)]
    if instance is None or told:
        raise ConfigError("\n".join(dict.fromkeys(line for each in told for line in each.splitlines())))
    return instance


def run_keys(tree: Mapping[str, Any]) -> dict[str, FieldInfo]:
    """Return all dotted keys possible for a tree."""
    tree = {**tree, **_named(tree)}
    keys: dict[str, FieldInfo] = {}
    for name, field in Run.model_fields.items():
        keys[name] = field
        for section in _sections(field, tree.get(name)):
            keys |= _dotted(section, name)
    for name, other in _others(tree.get("evaluate")):
        for section in _sections(Run.model_fields["data"], other):
            keys |= _dotted(section, f"evaluate.{name}.data")
    return keys


def _others(evaluate: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield evaluators and the images that they name, of unchecked input."""
    for name, settings in evaluate.items() if isinstance(evaluate, Mapping) else ():
        other = settings.get("data") if isinstance(settings, Mapping) else None
        if isinstance(other, Mapping) and "name" in other:
            yield name, other


def _all_keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return all dotted keys of a model."""
    return {name.removeprefix("."): field for name, field in _dotted(model, "").items()}


def _dotted(section: type[BaseModel], above: str) -> dict[str, FieldInfo]:
    """Return a section's keys, with those of subsections."""
    keys: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        keys[f"{above}.{name}"] = field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys |= _dotted(field.annotation, f"{above}.{name}")
    return keys


def _sections(field: FieldInfo, chosen: Any) -> list[type[BaseModel]]:
    """Return a section's models; none for a single value."""
    if field is Run.model_fields["beside"]:
        tasks = (_known("method", each.get("name")) for each in chosen or () if isinstance(each, Mapping))
        return [Task.Settings, *(known.Config for known in tasks if known)]
    kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
    section = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
    if section is Evaluate:
        return [evaluate_with(chosen.get("also", ()) if isinstance(chosen, Mapping) else ())]
    if section is None or not issubclass(section, Chosen):
        return [section] if section else []
    shared = [section.Settings] if issubclass(section, Settled) else []
    known = _known(section.kind, chosen["name"])
    return [known.Config, *shared] if known else shared


def _named(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return method, encoder and data as mappings with names."""
    method = _with_name(tree.get("method", {}), DEFAULT_METHOD)
    known = _known("method", method["name"])
    needs, only = (known.needs, known.values["only_encoder"]) if known else ((), None)
    encoder = "pretrained" if "trained_encoder" in needs else "vit_tiny" if "tokens" in needs else only or "convnet"
    return {
        "method": method,
        "encoder": _with_name(tree.get("encoder", {}), encoder),
        "data": _with_name(tree.get("data", {}), "digits"),
    }


def _known(kind: Kind, name: Any) -> Declaration | None:
    try:
        return find(kind, str(name))
    except ConfigError:
        return None  # reported when the section is validated


def _with_name(section: Any, default: str) -> dict[str, Any]:
    return {"name": default, **section} if isinstance(section, Mapping) else {"name": section}


def _with_small_settings(task: Any) -> Any:
    """Return a method beside the run's with its settings for short runs."""
    flat = _with_name(task, "")
    known = _known("method", flat["name"])
    return {**known.values["recipes"].small_settings, **flat} if known else task


_USED_BY = {"nesterov": ("sgd",), "beta2": ("adamw", "muon")}


def _fitting(settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the optimizer's settings if all have an effect, and the learning rate is not another optimizer's."""
    name = settings.get("name", recipe["name"])
    if name != recipe["name"] and "lr" not in settings:
        raise wrong(f"optimizer.lr is missing: the recipe's {recipe['lr']:g} is for {recipe['name']}, not for {name}")
    for key, users in _USED_BY.items():
        if settings.get(key, (default := Recipe.model_fields[key].default)) != default and name not in users:
            raise wrong(f"optimizer.{key} has no effect with optimizer.name={name}; remove it or use {users[0]}")
    return settings


def leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; ranges and empty sections are values."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and not is_range(value):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value

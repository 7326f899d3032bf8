"""Everything that defines a run or a sweep, validated before anything starts. Knows no torch, Ray, MLflow."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from eagleray.data.settings import DataSettings
from eagleray.declared import Declaration, Kind, find
from eagleray.errors import Refusal
from eagleray.mistakes import booleans, sentences, wrong
from eagleray.recipe import Recipe
from eagleray.search import Choice, IntRange, Range, is_range, probes, read_range
from eagleray.sections import (
    Augment,
    Checkpoints,
    Chosen,
    DataChoice,
    EncoderChoice,
    Evaluate,
    Labels,
    MethodChoice,
    Strict,
    Tracking,
)
from eagleray.trees import branch, merged, parse_override, read_tree

Model = TypeVar("Model", bound=BaseModel)


class Run(Strict, frozen=True):
    """One training run, whole."""

    method: MethodChoice
    encoder: EncoderChoice
    data: DataChoice
    augment: Augment = Augment()
    recipe: Annotated[
        Literal["small", "paper"],
        Field(description="which of the method's recipes: for small data and short runs, or the paper's"),
    ] = "small"
    optimizer: Recipe
    batch_size: Annotated[
        int, IntRange(32, 1024), Field(ge=2, description="images in a step, over all workers together")
    ] = 256
    epochs: Annotated[int, Field(ge=1, description="times the training images are seen")] = 10
    seed: Annotated[int, Field(ge=0, description="of the weights, the order, the views and the splits")] = 0
    image_size: Annotated[
        int | None, Field(ge=4, description="side of the views in pixels; null: that of the images")
    ] = None
    labels: Labels | None = None
    workers: Annotated[int, Field(ge=1, description="processes that train together")] = 1
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: a GPU where there is one")] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], Field(description="auto: bf16 where the hardware multiplies it")
    ] = "auto"
    threads: Annotated[int | None, Field(ge=1, description="of torch on the CPU; null: all cores")] = None
    evaluate: Evaluate = Evaluate()
    checkpoints: Checkpoints = Checkpoints()
    tracking: Tracking = Tracking()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        """What follows from the method: its encoder, its recipe, its labels."""
        given = {**given, **_named(given)}
        method = find("method", str(given["method"]["name"])).values
        small = given.get("recipe", "small") == "small"
        if small:
            given["method"] = {**method.get("small_settings", {}), **given["method"]}
        if isinstance(given.setdefault("optimizer", {}), Mapping):
            recipe = method["small_recipe" if small else "recipe"].model_dump()
            given["optimizer"] = {**recipe, **_used(given["optimizer"], recipe)}
        if method.get("labels") == "partial" and given.get("labels") is None:
            given["labels"] = {}
        return given

    @model_validator(mode="after")
    def _fits(self) -> Self:
        method, encoder = self.method.declaration.values, self.encoder.declaration.values
        if method.get("needs_tokens") and not encoder.get("has_tokens"):
            raise wrong(
                f"encoder={self.encoder.name}: {self.method.name} works on a ViT's patches; take encoder=vit_tiny"
            )
        if self.labels is not None and method.get("labels") != "partial":
            raise wrong(f"labels: {self.method.name} sees no labels; leave the section out")
        if self.batch_size % self.workers:
            near = max(1, round(self.batch_size / self.workers)) * self.workers
            raise wrong(
                f"batch_size={self.batch_size} cannot be shared by workers={self.workers}; "
                f"the nearest that can is {near}"
            )
        if self.labels is not None and self.batch_size < self.labels.ratio * self.workers:
            raise wrong(
                f"labels.ratio={self.labels.ratio} leaves no labelled image for every worker in a step of "
                f"batch_size={self.batch_size} (allowed: 1 to {self.batch_size // self.workers})"
            )
        return self

    def file(self) -> dict[str, Any]:
        """The resolved run file: plain values only, every default written out."""
        return self.model_dump(mode="json")


class Sweep(Strict, frozen=True):
    """One question: a run, what is varied in it, and how the answer is searched."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$", description="MLflow experiment and folder of its runs")]
    question: Annotated[str, Field(description="what the sweep is to answer, in one sentence")] = ""
    run: Annotated[
        dict[str, Any],
        Field(default_factory=dict, description="a run file; what it leaves out has its default"),
    ]
    vary: Annotated[
        dict[str, Any],
        Field(
            min_length=1,
            description="key -> values ([0.1, 0.2]), a range ({log_uniform: [0.05, 1]}, {uniform: …}, "
            "{int: …}) or `declared`; the key `run` takes whole variants ([{method: mae, encoder: vit_tiny}, …])",
        ),
    ]
    search: Annotated[Literal["grid", "random", "tpe"], Field(description="tpe: Optuna's")] = "random"
    trials: Annotated[int | None, Field(ge=1, description="points tried; null with grid: all of them")] = None
    seeds: Annotated[int, Field(ge=1, description="runs of every point, each with its own seed")] = 1
    metric: Annotated[str, Field(description="what is compared: any number a run reports")] = "knn"
    mode: Annotated[Literal["max", "min"], Field(description="which end of it is better")] = "max"
    scheduler: Annotated[Literal["none", "asha", "pbt"], Field(description="who ends or changes trials")] = "none"
    grace: Annotated[int, Field(ge=1, description="epochs before asha may stop a trial, and between pbt's changes")] = 1
    stop_collapsed: Annotated[bool, Field(description="end a trial whose embeddings have collapsed")] = True
    floor: Annotated[bool, Field(description="measure random init and raw pixels beside the trials")] = True
    concurrent: Annotated[int | None, Field(ge=1, description="trials at a time; null: as many as fit")] = None
    cpus_per_trial: Annotated[float, Field(gt=0, description="cores of one worker of a trial")] = 1
    gpus_per_trial: Annotated[
        float,
        Field(ge=0, description="GPUs of one worker of a trial; a fraction packs several trials on one"),
    ] = 0

    @field_validator("vary", mode="before")
    @classmethod
    def _dotted(cls, vary: Any) -> Any:
        """`{augment: {flip: [0, 1]}}` is another way to write `{augment.flip: [0, 1]}`."""
        return dict(_leaves(vary)) if isinstance(vary, Mapping) else vary

    @model_validator(mode="after")
    def _runs(self) -> Self:
        """Whatever the search may try must be a valid run."""
        ranges = self.ranges()
        if self.search != "grid" and self.trials is None:
            raise wrong(f"trials is missing: search={self.search} needs the number of points to try")
        if self.scheduler == "none" and self.grace != 1:
            raise wrong(f"grace={self.grace} is of no use with scheduler=none; leave it out or take scheduler=asha")
        for key, span in ranges.items():
            if self.search == "grid" and not isinstance(span, Choice):
                raise wrong(f"vary.{key} is a range, and search=grid needs a list of values; or take search=random")
            if self.scheduler == "pbt" and not key.startswith(("optimizer.", "augment.", "method.")):
                raise wrong(
                    f"vary.{key} cannot change in flight, as scheduler=pbt wants it to; "
                    "keys of optimizer, augment and method can"
                )
            if key == "seed" and self.seeds > 1:
                raise wrong("vary.seed and seeds exclude each other: each point is run with its own seeds")
        for _ in self.probes():
            pass
        return self

    def ranges(self) -> dict[str, Range]:
        """What is varied, key by key."""
        return {key: self._range(key, value) for key, value in self.vary.items()}

    def probes(self) -> Iterator[Run]:
        """Runs that the search may try: of a grid all (at most 500), else one for every end of every range.

        Raises:
            Refusal: one of them is no valid run.
        """
        spans = {key: probes(span) for key, span in self.ranges().items()}
        if self.search == "grid":
            points = itertools.islice(itertools.product(*spans.values()), 500)
            yield from (self.variant(dict(zip(spans, point, strict=True))) for point in points)
            return
        first = {key: values[0] for key, values in spans.items()}
        for key, values in spans.items():
            yield from (self.variant({**first, key: value}) for value in values)

    def variant(self, values: Mapping[str, Any]) -> Run:
        """The run that a point of the sweep stands for; its experiment is the sweep's name."""
        varied = (value if key == "run" else branch(key, value) for key, value in values.items())
        # First among themselves: where one of them is a name, the settings beside it are meant for that one.
        return validated(Run, merged({"tracking": {"experiment": self.name}}, self.run, merged(*varied)))

    def _range(self, key: str, value: Any) -> Range:
        if value == "declared":
            return self._declared_range(key)
        try:
            span = read_range(value)
        except Refusal as refusal:
            raise wrong(f"vary.{key}: {refusal}") from None
        if key == "run" and not all(isinstance(each, Mapping) for each in probes(span)):
            raise wrong("vary.run takes variants of the run, each a mapping: [{method: simclr}, {method: byol}]")
        return span

    def _declared_range(self, key: str) -> Range:
        known = run_keys(self.run)
        marks = known[key].metadata if key in known else ()
        span = next((mark for mark in marks if isinstance(mark, Range)), None)
        if span is None:
            raise wrong(f"vary.{key}: no range is declared for it; write one, such as {{uniform: [0, 1]}} or [1, 2]")
        return span


def load_run(file: Path | None, overrides: list[str]) -> Run:
    """A run from a file and `key=value` overrides, both optional.

    Raises:
        Refusal: names every wrong key with the nearest right one, every wrong value with what is allowed.
    """
    # First among themselves, so that their order is all one: `method.momentum=0.9 method=byol` is one wish.
    return validated(Run, merged(read_tree(file) if file else {}, merged(*map(parse_override, overrides))))


def load_sweep(file: Path, overrides: list[str]) -> Sweep:
    """A sweep from a file and overrides: keys of the sweep (`trials=4`), else of its run (`epochs=5`).

    Raises:
        Refusal: as `load_run`.
    """
    wishes = map(parse_override, overrides)
    given = merged(*(wish if next(iter(wish)) in Sweep.model_fields else {"run": wish} for wish in wishes))
    return validated(Sweep, merged(read_tree(file), given))


def validated(model: type[Model], tree: Mapping[str, Any]) -> Model:
    """The model, or a Refusal in which each mistake is a line of its own."""
    try:
        found, mistakes = model.model_validate(tree), []
    except ValidationError as error:
        found, mistakes = None, error.errors()
    known = run_keys(tree) if model is Run else model.model_fields
    said = [*booleans(_leaves(tree), known), *sentences(mistakes, known)]
    if found is None or said:
        raise Refusal("\n".join(dict.fromkeys(said)))
    return found


def run_keys(tree: Mapping[str, Any]) -> dict[str, FieldInfo]:
    """Every key that a run may have, dotted, given the names that a tree chooses."""
    tree = {**tree, **_named(tree)}
    keys: dict[str, FieldInfo] = {}
    for name, field in Run.model_fields.items():
        keys[name] = field
        for section in _sections(field, tree.get(name)):
            keys |= {f"{name}.{key}": inner for key, inner in section.model_fields.items()}
    return keys


def _sections(field: FieldInfo, chosen: Any) -> list[type[BaseModel]]:
    """The models whose keys stand in a section of a run file; none for a plain value."""
    kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
    section = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
    if section is None or not issubclass(section, Chosen):
        return [section] if section else []
    shared: list[type[BaseModel]] = [DataSettings] if section is DataChoice else []
    known = _known(section.kind, chosen["name"])
    return [known.Config, *shared] if known else shared


def _named(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Method, encoder and data of a tree, each a mapping with a name: the default one where none is given."""
    method = _with_name(tree.get("method"), "simclr")
    known = _known("method", method["name"])
    tokens = known is not None and known.values.get("needs_tokens")
    encoder = _with_name(tree.get("encoder"), "vit_tiny" if tokens else "convnet")
    return {"method": method, "encoder": encoder, "data": _with_name(tree.get("data"), "digits")}


def _known(kind: Kind, name: Any) -> Declaration | None:
    try:
        return find(kind, str(name))
    except Refusal:
        return None  # said where the section is validated


def _with_name(section: Any, default: str) -> dict[str, Any]:
    if section is None or isinstance(section, Mapping):
        return {"name": default, **(section or {})}
    return {"name": section}


_USED_BY = {"nesterov": "sgd", "beta2": "adamw"}


def _used(given: Mapping[str, Any], recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """The optimizer's settings as given, none of them without effect."""
    name = given.get("name", recipe["name"])
    for key, user in _USED_BY.items():
        if given.get(key, (default := Recipe.model_fields[key].default)) != default and name != user:
            raise wrong(f"optimizer.{key} is of no use to optimizer.name={name}; leave it out or take {user}")
    return given


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; a range is a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and not is_range(value):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value

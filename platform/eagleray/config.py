"""Everything that defines a run or a sweep, validated before anything starts. Imports no torch, no Ray, no MLflow."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from eagleray.data.settings import DataSettings
from eagleray.declared import Declaration, Kind, find
from eagleray.errors import Refusal
from eagleray.recipe import Recipe
from eagleray.search import Choice, IntRange, LogUniform, Range, Uniform


Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel, frozen=True, extra="forbid"):
    """A section of a file: unknown keys are errors, nothing changes after validation."""


class Chosen(BaseModel, frozen=True):
    """A method or encoder by name, with the settings that its own file declares.

    Written flat, `{name: simclr, temperature: 0.1}`; a bare name is enough.
    """

    kind: ClassVar[Kind]
    name: str
    config: SerializeAsAny[BaseModel]

    @property
    def declaration(self) -> Declaration:
        """What its file declares."""
        return find(self.kind, self.name)

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, value: Any) -> Any:
        flat = {"name": value} if isinstance(value, str) else dict(value)
        declaration = find(cls.kind, str(flat.pop("name")))
        return {"name": declaration.name, **cls._parts(declaration, flat)}

    @classmethod
    def _parts(cls, declaration: Declaration, flat: dict[str, Any]) -> dict[str, Any]:
        return {"config": _nested(declaration.Config, flat)}

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.config.model_dump(mode="json")}


class MethodChoice(Chosen, frozen=True):
    """Which method, and its hyperparameters."""

    kind: ClassVar[Kind] = "method"


class EncoderChoice(Chosen, frozen=True):
    """Which network is trained."""

    kind: ClassVar[Kind] = "encoder"


class DataChoice(Chosen, frozen=True):
    """Which images; beside a source's own settings stand those that every source shares."""

    kind: ClassVar[Kind] = "data"
    settings: DataSettings

    @classmethod
    def _parts(cls, declaration: Declaration, flat: dict[str, Any]) -> dict[str, Any]:
        shared = {key: flat.pop(key) for key in list(flat) if key in DataSettings.model_fields}
        return {"config": _nested(declaration.Config, flat), "settings": _nested(DataSettings, shared)}

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.config.model_dump(mode="json"),
            **self.settings.model_dump(mode="json"),
        }


Operation = Literal[
    "crop", "shift", "flip", "jitter", "grayscale", "blur", "solarize", "rotate", "randaugment", "cutout"
]
Probability = Annotated[float | None, Uniform(0.0, 1.0), Field(ge=0, le=1)]


class Augment(Strict):
    """Changes to the views a method declares; what is null stays as the method has it."""

    crop_min: Annotated[
        float | None, Uniform(0.05, 1.0), Field(gt=0, le=1, description="smallest area of a random crop")
    ] = None
    flip: Annotated[Probability, Field(description="probability of a horizontal flip")] = None
    jitter: Annotated[
        float | None, Uniform(0.0, 1.0), Field(ge=0, le=2, description="strength of the colour jitter")
    ] = None
    grayscale: Annotated[Probability, Field(description="probability of dropping the colour")] = None
    blur: Annotated[Probability, Field(description="probability of a Gaussian blur")] = None
    solarize: Annotated[Probability, Field(description="probability of solarizing")] = None
    rotate: Annotated[Probability, Field(description="probability of a right-angle rotation")] = None
    cutout: Annotated[
        float | None, Uniform(0.0, 0.5), Field(ge=0, lt=1, description="side of the square cut out, a part of the image's")
    ] = None
    only: Annotated[
        tuple[Operation, ...] | None, Field(description="keep these operations alone; the others are switched off")
    ] = None
    exact: Annotated[
        bool, Field(description="torchvision's exact colour chain in place of the fused approximation")
    ] = False


class Labels(Strict):
    """The few labels of a semi-supervised method."""

    per_class: Annotated[int, Field(ge=1, description="labelled images of each class, chosen by the seed")] = 40
    ratio: Annotated[int, Field(ge=1, description="unlabelled images in a step for each labelled one")] = 7


class Evaluate(Strict):
    """What is measured, and when. Everything is chosen on validation; test is touched once, at the end."""

    every: Annotated[int, Field(ge=1, description="epochs between evaluations")] = 1
    k: Annotated[int, Field(ge=1, description="neighbours of the kNN; bounded by the data")] = 200
    knn_temperature: Annotated[float, Field(gt=0, description="temperature of the kNN's votes")] = 0.07
    linear: Annotated[
        Literal["end", "always", "never"], Field(description="when the linear probe is fitted")
    ] = "end"
    test: Annotated[bool, Field(description="measure the test part once, at the end")] = True
    batch_size: Annotated[int, Field(ge=1, description="images encoded at once")] = 512


class Checkpoints(Strict):
    """When the state of a run is saved; always at its end."""

    every_epochs: Annotated[int, Field(ge=1, description="epochs between checkpoints")] = 1
    every_steps: Annotated[int | None, Field(ge=1, description="also after so many steps")] = None
    keep: Annotated[int, Field(ge=1, description="the newest so many are kept")] = 2


class Tracking(Strict):
    """Where the numbers go."""

    uri: Annotated[
        str | None, Field(description="MLflow store or server; null: MLFLOW_TRACKING_URI, else a local SQLite file")
    ] = None
    experiment: Annotated[str, Field(min_length=1, description="MLflow experiment")] = "eagleray"
    runs: Annotated[str, Field(min_length=1, description="folder of the runs' own directories")] = "runs"


class Run(Strict):
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
        given = dict(given)
        given.setdefault("method", "simclr")
        given.setdefault("data", "digits")
        method = _declaration("method", given["method"])
        if method is None:
            return given
        given.setdefault("encoder", "vit_tiny" if method.values.get("needs_tokens") else "convnet")
        small = given.get("recipe", "small") == "small"
        recipe = method.values["small_recipe" if small else "recipe"]
        if small:
            own = {"name": given["method"]} if isinstance(given["method"], str) else given["method"]
            given["method"] = {**method.values.get("small_settings", {}), **own}
        if isinstance(given.setdefault("optimizer", {}), Mapping):
            given["optimizer"] = {**recipe.model_dump(), **given["optimizer"]}
        if method.values.get("labels") == "partial" and given.get("labels") is None:
            given["labels"] = {}
        return given

    @model_validator(mode="after")
    def _fits(self) -> Self:
        method, encoder = self.method.declaration, self.encoder.declaration
        if method.values.get("needs_tokens") and not encoder.values.get("has_tokens"):
            raise _wrong(f"encoder={self.encoder.name}: {self.method.name} works on a ViT's patches; take encoder=vit_tiny")
        if self.labels is not None and method.values.get("labels") != "partial":
            raise _wrong(f"labels: {self.method.name} sees no labels; leave the section out")
        if self.batch_size % self.workers:
            near = max(1, round(self.batch_size / self.workers)) * self.workers
            raise _wrong(
                f"batch_size={self.batch_size} cannot be shared by workers={self.workers}; the nearest that can is {near}"
            )
        if self.labels is not None and self.batch_size < self.labels.ratio * self.workers:
            raise _wrong(
                f"labels.ratio={self.labels.ratio} leaves no labelled image in a step of batch_size={self.batch_size}"
            )
        return self

    def file(self) -> dict[str, Any]:
        """The resolved run file: plain values only, every default written out."""
        return self.model_dump(mode="json")


class Sweep(Strict):
    """One question: a run, what is varied in it, and how the answer is searched."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$", description="MLflow experiment and folder of its runs")]
    question: Annotated[str, Field(description="what the sweep is to answer, in one sentence")] = ""
    run: Annotated[dict[str, Any], Field(description="a run file; what it leaves out has its default")] = {}
    vary: Annotated[
        dict[str, Any],
        Field(
            min_length=1,
            description="key -> values ([0.1, 0.2]), a range ({log_uniform: [0.05, 1]}, {uniform: …}, {int: …}) or "
            "`declared`; the key `run` takes whole variants ([{method: mae, encoder: vit_tiny}, …])",
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
        float, Field(ge=0, description="GPUs of one worker of a trial; a fraction packs several trials on one")
    ] = 0

    @model_validator(mode="after")
    def _runs(self) -> Self:
        """Every end of every range must make a valid run."""
        ranges = self.ranges()
        if self.search == "grid":
            for key, span in ranges.items():
                if not isinstance(span, Choice):
                    raise _wrong(f"vary.{key} is a range, and search=grid needs a list of values; or take search=random")
        elif self.trials is None:
            raise _wrong(f"trials: search={self.search} needs the number of points to try")
        first = {key: _ends(span)[0] for key, span in ranges.items()}
        for key, span in ranges.items():
            for value in _ends(span):
                self.variant({**first, key: value})
        if self.scheduler == "pbt":
            for key in ranges:
                if key.partition(".")[0] not in ("optimizer", "augment", "method") or key == "method":
                    raise _wrong(f"vary.{key} cannot change in flight, which scheduler=pbt needs")
        return self

    def ranges(self) -> dict[str, Range]:
        """What is varied, key by key."""
        return {key: _range(key, value, self.run) for key, value in self.vary.items()}

    def variant(self, values: Mapping[str, Any]) -> Run:
        """The run that a point of the sweep stands for; its experiment is the sweep's name."""
        tree = merged({"tracking": {"experiment": self.name}}, self.run)
        for key, value in values.items():
            tree = merged(tree, value if key == "run" else _tree(key, value))
        return validated(Run, tree)


# --- reading files and overrides -------------------------------------------------------------------------------


def load_run(file: Path | None, overrides: list[str]) -> Run:
    """A run from a file and `key=value` overrides, both optional.

    Raises:
        Refusal: names every wrong key with the nearest right one, every wrong value with what is allowed.
    """
    return validated(Run, merged(_read(file), *map(parse_override, overrides)))


def load_sweep(file: Path, overrides: list[str]) -> Sweep:
    """A sweep from a file and overrides: keys of the sweep (`trials=4`), else of its run (`epochs=5`)."""
    tree = _read(file)
    for override in map(parse_override, overrides):
        of_sweep = next(iter(override)) in Sweep.model_fields
        tree = merged(tree, override if of_sweep else {"run": override})
    return validated(Sweep, tree)


def validated(model: type[Model], tree: Mapping[str, Any]) -> Model:
    """The model, or a Refusal in which each mistake is a line of its own."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise Refusal("\n".join(dict.fromkeys(_explain(error.errors(), model, tree)))) from None


def parse_override(text: str) -> dict[str, Any]:
    """`method.temperature=0.1` as a tree; the value is read as YAML.

    Raises:
        Refusal: it is no `key=value`.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise Refusal(f"{text!r} is not a setting; write key=value, for example method.temperature=0.1")
    return _tree(key.strip(), yaml.safe_load(value))


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Trees laid over each other, the later the stronger. Another name drops the settings of the one before."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            value = {"name": value} if key in _CHOSEN and isinstance(value, str) else value
            below = result.get(key)
            if isinstance(value, Mapping) and isinstance(below, Mapping):
                renamed = key in _CHOSEN and value.get("name", below.get("name")) != below.get("name")
                value = dict(value) if renamed else merged(below, value)
            result[key] = value
    return result


_CHOSEN = ("method", "encoder", "data")


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    if not file.is_file():
        raise Refusal(f"there is no file {file}")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise Refusal(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict | None):
        raise Refusal(f"{file} holds no keys; a run or sweep file is a mapping of keys to values")
    return merged(tree or {})


def _tree(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


# --- ranges ----------------------------------------------------------------------------------------------------

_RANGES = {"uniform": Uniform, "log_uniform": LogUniform, "int": IntRange}


def _range(key: str, value: Any, run: Mapping[str, Any]) -> Range:
    if value == "declared":
        return _declared_range(key, run)
    if isinstance(value, list | tuple) and value:
        return Choice(*value)
    if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in _RANGES:
        kind, ends = next(iter(value.items()))
        if isinstance(ends, list | tuple) and len(ends) == 2:
            return _RANGES[kind](*map(int if kind == "int" else float, ends))
    raise _wrong(f"vary.{key}: write a list of values, {{uniform|log_uniform|int: [low, high]}} or `declared`")


def _declared_range(key: str, run: Mapping[str, Any]) -> Range:
    field = _field(key, merged(run))
    for mark in field.metadata if field is not None else ():
        if isinstance(mark, Range):
            return mark
    raise _wrong(f"vary.{key}: no range is declared for it; write one")


def _field(key: str, tree: Mapping[str, Any]) -> Any:
    """The pydantic field behind a dotted key."""
    section, _, name = key.rpartition(".")
    return _sections(tree).get(section, Run).model_fields.get(name)


def _sections(tree: Mapping[str, Any]) -> dict[str, type[BaseModel]]:
    """The model behind each section of a run file, those of the chosen names too."""
    sections: dict[str, type[BaseModel]] = {
        "": Run, "augment": Augment, "optimizer": Recipe, "labels": Labels, "evaluate": Evaluate,
        "checkpoints": Checkpoints, "tracking": Tracking,
    }  # fmt: skip
    for kind, default in (("method", "simclr"), ("encoder", "convnet"), ("data", "digits")):
        declaration = _declaration(kind, tree.get(kind, default))
        if declaration is not None:
            sections[kind] = declaration.Config
    return sections


def _ends(span: Range) -> list[Any]:
    return list(span.values) if isinstance(span, Choice) else [span.low, span.high]


# --- saying what is wrong --------------------------------------------------------------------------------------


def _declaration(kind: Kind, chosen: Any) -> Declaration | None:
    name = chosen.get("name") if isinstance(chosen, Mapping) else chosen
    try:
        return find(kind, name) if isinstance(name, str) else None
    except Refusal:
        return None  # the section's own validation says so


def _nested(model: type[Model], values: Mapping[str, Any]) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise PydanticCustomError("nested", "wrong settings", {"errors": error.errors()}) from None


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{message}", {"message": message})


def _explain(errors: Any, model: type[BaseModel], tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for error in errors:
        key = ".".join([*filter(None, [above]), *map(str, error["loc"])])
        context = error.get("ctx", {})
        if error["type"] == "nested":
            yield from _explain(context["errors"], model, tree, key)
        elif error["type"] == "extra_forbidden":
            yield f"unknown key {key}{_nearest(key, _keys(model, tree))}"
        elif error["type"] == "missing":
            yield f"{key} is missing"
        elif error["type"] in ("wrong", "value_error"):
            text = str(context.get("message") or context.get("error"))
            yield text if error["type"] == "wrong" or not key else f"{key}: {text}"
        else:
            what = error["msg"].replace("Input should be", "must be")
            yield f"{key}={error['input']!r}: {what[:1].lower()}{what[1:]}{_bounds(model, tree, key)}"


def _nearest(key: str, keys: list[str]) -> str:
    section, _, last = key.rpartition(".")
    siblings = [k for k in keys if k.rpartition(".")[0] == section]
    near = difflib.get_close_matches(key, siblings, 1, 0.5) or [
        k for k in keys if k.rpartition(".")[2] == last
    ][:1] or difflib.get_close_matches(key, keys, 1, 0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f" (known: {', '.join(siblings)})" if siblings else ""


def _keys(model: type[BaseModel], tree: Mapping[str, Any]) -> list[str]:
    if model is Sweep:
        return list(Sweep.model_fields)
    if model is not Run:
        return list(model.model_fields)
    shared = [f"data.{key}" for key in DataSettings.model_fields]
    return [
        *shared,
        *(f"{s}.{key}" if s else key for s, section in _sections(tree).items() for key in section.model_fields),
    ]


def _bounds(model: type[BaseModel], tree: Mapping[str, Any], key: str) -> str:
    """The allowed range of a field, said after pydantic's sentence, which names one end of it only."""
    field = _field(key, tree) if model is Run else None
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    ends = [
        f"{sign} {getattr(mark, end)}"
        for mark in (field.metadata if field is not None else ())
        for end, sign in signs.items()
        if getattr(mark, end, None) is not None
    ]
    return f" (allowed: {' and '.join(ends)})" if len(ends) > 1 else ""

"""The sections of a run file.

Also the choice of a method, an encoder or a source of images by name.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    create_model,
    field_serializer,
    model_serializer,
    model_validator,
)

from eagleray.config.mistakes import nearest, nested, wrong
from eagleray.config.plugin_files import PluginFile
from eagleray.config.recorded import lost, settings_of
from eagleray.config.registry import WORDS, Declaration, Kind, declared, find
from eagleray.contracts import view
from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.metric import When
from eagleray.contracts.paths import AbsolutePath, expanded, located, shared
from eagleray.contracts.ranges import LogUniform
from eagleray.contracts.visible import visible

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A frozen section of a file; unknown keys are errors."""


class Chosen(BaseModel, frozen=True):
    """A method or encoder by name, with its settings.

    Written flat, `{name: simclr, temperature: 0.1}`; a bare name is enough.
    """

    kind: ClassVar[Kind]
    section: ClassVar[str | None] = None  # of the run file; None: called as its kind
    name: str
    config: SerializeAsAny[BaseModel]

    @property
    def declaration(self) -> Declaration:
        """The declaration in its file."""
        return find(self.kind, self.name)

    @property
    def title(self) -> str:
        """The name, of a file of the user's own without its folder."""
        file = PluginFile.of(self.name)
        return file.title if file else self.name

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, value: Any, info: ValidationInfo) -> Any:
        flat = dict(value) if isinstance(value, Mapping) else {"name": value}
        if not isinstance(name := flat.pop("name", None), str):
            section, shown = cls.section or cls.kind, "null" if name is None else name
            raise wrong(f"{section}={shown} is not a name; `eagleray {WORDS[cls.kind]}s` lists them")
        declaration = find(cls.kind, name)
        recorded = (info.context or {}).get(cls.section or cls.kind, ())
        return {"name": declaration.name, **cls._parts(declaration, flat, recorded)}

    @classmethod
    def _parts(cls, declaration: Declaration, flat: dict[str, Any], recorded: Collection[str]) -> dict[str, Any]:
        return {"config": _own(declaration, flat, recorded)}

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.config.model_dump(mode="json")}


class Settled(Chosen, frozen=True):
    """A choice with settings that do not depend on its name, written beside those that do."""

    Settings: ClassVar[type[BaseModel]]
    settings: SerializeAsAny[BaseModel]

    @classmethod
    def _parts(cls, declaration: Declaration, flat: dict[str, Any], recorded: Collection[str]) -> dict[str, Any]:
        shared = {key: flat.pop(key) for key in list(flat) if key in cls.Settings.model_fields}
        config = _own(declaration, flat, recorded)
        return {"config": config, "settings": _settings(cls.Settings, shared, declaration)}

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.config.model_dump(mode="json"),
            **self.settings.model_dump(mode="json"),
        }


class MethodChoice(Chosen, frozen=True):
    """The method and its hyperparameters."""

    kind: ClassVar[Kind] = "method"


class EncoderChoice(Chosen, frozen=True):
    """The network to train."""

    kind: ClassVar[Kind] = "encoder"


class DataSettings(BaseModel, frozen=True, extra="forbid"):
    """How every source's images are split, stored, read."""

    validation: Annotated[
        float | None,
        Field(
            ge=0,
            le=0.5,
            description="share of train held out by the run's seed, unless the source has its own validation images; "
            "null if validation_per_class is given",
        ),
    ] = 0.1
    validation_per_class: Annotated[
        int | None,
        Field(
            ge=1,
            description="labelled images of each class to validate on, for validation; drawn by the run's seed from "
            "train, or from the source's own validation images",
        ),
    ] = None
    limit: Annotated[
        int | None,
        Field(ge=2, description="train on at most this many images, drawn by the run's seed; null: on all"),
    ] = None
    imbalance: Annotated[
        float,
        LogUniform(1, 200),
        Field(
            ge=1,
            description="of K classes, class k trains on at most imbalance^(-k/(K-1)) times the images of the largest "
            "one, drawn by the run's seed after validation and limit; 1: on all",
        ),
    ] = 1.0
    memory_limit: Annotated[
        ByteSize,
        Field(gt=0, description="a folder that decodes to more (`4 GiB`, or bytes) is read again in every epoch"),
    ] = ByteSize(4 * 2**30)
    workers: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="processes that decode a folder above memory_limit; 0: the training process decodes it",
        ),
    ] = 2
    cache: Annotated[
        AbsolutePath | None,
        Field(description="folder of decoded images, shared by all runs; null: eagleray in the user's cache folder"),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _without_default(cls, values: Any) -> Any:
        is_count = isinstance(values, Mapping) and values.get("validation_per_class") is not None
        return {"validation": None, **values} if is_count else values

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        share, count = self.validation, self.validation_per_class
        if share is not None and count is not None:
            raise wrong(
                f"data.validation_per_class={count} and data.validation={share:g} exclude each other; set one to null"
            )
        if share is None and count is None:
            raise wrong("data.validation=null says nothing; set it (0: hold out none), or data.validation_per_class")
        return self


class DataChoice(Settled, frozen=True):
    """The images: source, its settings and the common ones."""

    kind: ClassVar[Kind] = "data"
    Settings: ClassVar[type[BaseModel]] = DataSettings
    settings: DataSettings


class TaskSettings(Strict, frozen=True):
    """The part of a method beside another in the loss."""

    loss_weight: Annotated[
        float, LogUniform(0.01, 10), Field(gt=0, strict=True, description="of its loss, which is added to the others")
    ] = 1.0


class Task(Settled, MethodChoice, frozen=True):
    """A method beside the run's."""

    section: ClassVar[str | None] = "beside"
    Settings: ClassVar[type[BaseModel]] = TaskSettings
    settings: TaskSettings


if TYPE_CHECKING:
    Operation = str
else:
    Operation = Literal[*view.OPERATIONS]
_from_views: dict[str, Any] = {name: (kind, None) for name, kind in view.SETTINGS.items()}
_ViewSettings = create_model("_ViewSettings", __base__=Strict, **_from_views)


class Augment(_ViewSettings, frozen=True):
    """Changes to a method's views; null keeps its setting."""

    only: Annotated[
        tuple[Operation, ...] | None,
        Field(description="keep only these operations; the others are switched off"),
    ] = None
    exact: Annotated[
        bool, Field(description="torchvision's exact colour chain in place of the fused approximation")
    ] = False

    def changes(self) -> dict[str, Any]:
        """Return the view settings that the run changes."""
        return self.model_dump(exclude={"only", "exact"}, exclude_none=True)


class Labels(Strict, frozen=True):
    """The few labels of a semi-supervised method.

    Images without a label are never among them: with `fraction=1` they are all that the source gives to train.
    """

    per_class: Annotated[
        int | None,
        Field(ge=1, description="labelled images of each class, chosen by the seed; null if a fraction is given"),
    ] = 40
    fraction: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="share of each class's labelled images that keep their label, at least one; 1: all labels that "
            "train has; for per_class",
        ),
    ] = None
    imbalance: Annotated[
        float,
        LogUniform(1, 200),
        Field(
            ge=1,
            description="of K classes, class k has imbalance^(-k/(K-1)) times as many labels, at least one; 1: as many",
        ),
    ] = 1.0
    ratio: Annotated[
        int, Field(ge=1, description="images in a step for each labelled image; 1 if all are labelled")
    ] = 7

    @property
    def asked(self) -> str:
        """What was asked for, as it is typed."""
        kind = "per_class" if self.fraction is None else "fraction"
        return f"labels.{kind}={getattr(self, kind)}"

    @model_validator(mode="before")
    @classmethod
    def _without_default(cls, values: Any) -> Any:
        is_share = isinstance(values, Mapping) and values.get("fraction") is not None
        return {"per_class": None, **values} if is_share else values

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.per_class is not None and self.fraction is not None:
            raise wrong(
                f"labels.per_class={self.per_class} and labels.fraction={self.fraction} exclude each other; "
                "set one to null"
            )
        if self.per_class is None and self.fraction is None:
            raise wrong("labels.per_class=null leaves no label; set it, or labels.fraction")
        return self


def _absolute(name: str) -> str:
    return str(PluginFile.of(name) or name)


class Evaluate(Strict, frozen=True):
    """What is measured, and when.

    All choices use validation; the test set is used once, at the end. In addition there is a section for each
    evaluator: those in `evaluators/`, and those of `also`.
    """

    protocols: Annotated[
        tuple[str, ...] | None,
        Field(description="exactly these evaluators measure, each at its `when`, or at the end if that is never"),
    ] = None
    every: Annotated[int, Field(ge=1, description="epochs between evaluations")] = 1
    test: Annotated[bool, Field(description="evaluate on the test set once, at the end")] = True
    batch_size: Annotated[int, Field(ge=1, description="images encoded at once")] = 512
    size: Annotated[
        int | None,
        Field(
            ge=1,
            description="side of the images that are encoded, here, by embed and by exported encoders; null: "
            "image_size. Crops show things larger, so that a convolutional network may see more in larger images",
        ),
    ] = None
    mirror: Annotated[
        bool,
        Field(
            description="the features of an image (and a classifier's logits) are the mean of its own and its mirror "
            "image's, here, by embed and by exported encoders; twice the time. For images that mean the same mirrored"
        ),
    ] = False
    shift: Annotated[
        int,
        Field(
            ge=0,
            description="pixels; the mean is over copies of the image too, moved by that many up, down, left and "
            "right, edges repeated: five times the time. 0: none",
        ),
    ] = 0
    also: Annotated[
        tuple[Annotated[str, AfterValidator(_absolute)], ...],
        Field(description="evaluators of your own: ./participation.py, or modules such as my_lab.participation"),
    ] = ()

    evaluators: ClassVar[Mapping[str, Declaration]] = {}  # all of them, by name; see `evaluate_with`

    def when(self, evaluator: str) -> When:
        """Return when an evaluator measures: `protocols` say whether, its own setting says when."""
        own: When = getattr(self, evaluator).when
        if self.protocols is None:
            return own
        return "never" if evaluator not in self.protocols else "end" if own == "never" else own

    @property
    def others(self) -> dict[str, DataChoice]:
        """The images of evaluators that measure on other ones than the run's, by the evaluator's name."""
        chosen = {name: getattr(getattr(self, name), "data", None) for name in self.evaluators}
        return {name: one for name, one in chosen.items() if isinstance(one, DataChoice) and self.when(name) != "never"}

    @model_validator(mode="wrap")
    @classmethod
    def _whole(cls, values: Any, handler: ModelWrapValidatorHandler["Evaluate"]) -> "Evaluate":
        """Validate with the sections of all evaluators."""
        if cls is not Evaluate or not isinstance(values, Mapping):
            return handler(values)
        section = evaluate_with(values.get("also", ())).model_validate(values)
        for name in section.protocols or ():
            if name not in section.evaluators:
                raise wrong(
                    f"evaluate.protocols: there is no evaluator {name}{nearest(name, section.evaluators)} (`eagleray "
                    "evaluators` lists them; one of your own is named in evaluate.also)"
                )
        for name in section.evaluators:
            settings = getattr(section, name)
            if type(settings).model_validate(settings.model_dump(mode="json")) != settings:
                raise wrong(f"evaluate.{name}: a validator of its Config changes values that a run file gives back")
            if has_images(section.evaluators[name]) and section.when(name) != "never" and settings.data is None:
                key = f"evaluate.{name}.data"
                raise wrong(f"{key} names no images; set {key}.name and its settings, as those of data")
        return section


def evaluate_with(also: Any) -> type[Evaluate]:
    """Return the `evaluate` section with every evaluator's settings.

    `also` is unchecked input of any type.
    """
    known = isinstance(also, list | tuple) and all(map(_is_text, also))
    names = tuple(map(_absolute, also)) if known else ()
    return _evaluate_with(names, tuple(file.changed for name in names if (file := PluginFile.of(name))))


@cache
def _evaluate_with(also: tuple[str, ...], _: tuple[int, ...]) -> type[Evaluate]:
    evaluators, sections = _evaluators(also), dict[str, Any]()
    for name, one in evaluators.items():
        model = evaluator_settings(one)
        sections[name] = (Annotated[model, Field(description=one.summary)], Field(default_factory=model))
    section = create_model("Evaluate", __base__=Evaluate, __doc__=Evaluate.__doc__, **sections)
    section.evaluators = evaluators
    return section


def evaluator_settings(one: Declaration) -> type[BaseModel]:
    """Return an evaluator's settings and `when`."""
    when = Annotated[When, Field(description="measured always (at every evaluation), at the end, or never")]
    fields: dict[str, Any] = {"when": (when, one.values["when"])}
    if has_images(one):
        fields["data"] = Annotated[DataChoice | None, one.Config.model_fields["data"]], None
    return create_model(one.name, __base__=one.Config, __doc__=one.doc, **fields)


def has_images(evaluator: Declaration) -> bool:
    """Return whether an evaluator measures on images of its own."""
    return "data" in evaluator.Config.model_fields


def _evaluators(also: tuple[str, ...]) -> dict[str, Declaration]:
    evaluators = dict(declared("evaluator"))
    for module in also:
        file = PluginFile.of(module)
        name = file.title if file else module.rpartition(".")[2]
        if "." not in module:
            raise ConfigError(
                f"evaluate.also: {module} is neither a FILE.py nor a module; Eagleray's evaluators are always included"
            )
        if name in evaluators or name in Evaluate.model_fields:
            raise ConfigError(
                f"evaluate.also: there is an evaluator or a setting called {name} already; rename {module}"
            )
        evaluators[name] = replace(find("evaluator", module), name=name)
    return evaluators


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


class Checkpoints(Strict, frozen=True):
    """When a run is saved; always at the end."""

    every_epochs: Annotated[int, Field(ge=1, description="epochs between checkpoints")] = 1
    every_steps: Annotated[int | None, Field(ge=1, description="steps between additional checkpoints")] = None
    keep: Annotated[int, Field(ge=1, description="number of newest checkpoints that are kept")] = 2


LONGEST = 80  # characters of a name that is a folder: file systems allow 255 bytes, and a character may take three


def _with_letters(name: str) -> str:
    """Return a name that still names something where a folder has it."""
    if not re.search(r"\w", name):
        raise wrong(f"tracking.experiment={name} names nothing: it needs a letter, a digit or _")
    if name != visible(name):
        raise wrong(f"tracking.experiment={name} has a character that a terminal would obey; remove it")
    return name


class Tracking(Strict, frozen=True):
    """Where the numbers are sent."""

    uri: Annotated[
        str | None,
        Field(description="MLflow store or server; null: MLFLOW_TRACKING_URI, else a local SQLite file"),
    ] = None
    experiment: Annotated[
        str, AfterValidator(_with_letters), Field(max_length=LONGEST, description="MLflow experiment")
    ] = "eagleray"
    runs: Annotated[
        str,
        BeforeValidator(located),
        AfterValidator(lambda runs: str(expanded(runs))),
        PlainSerializer(shared, return_type=str, when_used="json"),
        Field(min_length=1, description="folder of the runs' own directories, or its address (s3://, gs://)"),
    ] = "runs"

    @field_serializer("uri")
    def _shared(self, uri: str | None) -> str | None:
        return uri and without_password(uri)  # run files get shared


def _own(declaration: Declaration, values: Mapping[str, Any], recorded: Collection[str]) -> BaseModel:
    """Validate the settings of a part.

    The part is a method, an encoder or a source; a run file must be able to store them.
    """
    config = _settings(declaration.Config, values, declaration, recorded)
    if unkept := lost(config):
        raise wrong(
            f"{declaration.kind}={declaration.name}: a run file does not give back {', '.join(unkept)} as its Config "
            "has it; annotate it with its final type, and let no validator change it twice"
        )
    return config


def _settings(
    model: type[Model], values: Mapping[str, Any], owner: Declaration, recorded: Collection[str] = ()
) -> Model:
    try:
        return settings_of(model, values, recorded)
    except ValidationError as error:
        unknown = [e["loc"][-1] for e in error.errors() if e["type"] == "extra_forbidden"]
        others = sorted(declared(owner.kind).values(), key=lambda other: not other.required)
        owners = {str(key): [d.name for d in others if key in d.Config.model_fields] for key in unknown}
        raise nested(error.errors(), owner.name, owners) from None

"""The sections of a run file, and how a method, an encoder or a source of images is chosen by its name."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    Field,
    ModelWrapValidatorHandler,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    create_model,
    model_serializer,
    model_validator,
)

from eagleray.config.mistakes import nested, wrong
from eagleray.config.recorded import lost, settings_of
from eagleray.config.registry import Declaration, Kind, declared, find
from eagleray.contracts import view
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.metric import When

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
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
    def _from_flat(cls, value: Any, info: ValidationInfo) -> Any:
        flat = dict(value) if isinstance(value, Mapping) else {"name": value}
        declaration = find(cls.kind, str(flat.pop("name")))
        recorded = (info.context or {}).get(cls.kind, ())
        return {"name": declaration.name, **cls._parts(declaration, flat, recorded)}

    @classmethod
    def _parts(cls, declaration: Declaration, flat: dict[str, Any], recorded: Collection[str]) -> dict[str, Any]:
        return {"config": _own(declaration, flat, recorded)}

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.config.model_dump(mode="json")}


class MethodChoice(Chosen, frozen=True):
    """Which method, and its hyperparameters."""

    kind: ClassVar[Kind] = "method"


class EncoderChoice(Chosen, frozen=True):
    """Which network is trained."""

    kind: ClassVar[Kind] = "encoder"


class DataSettings(BaseModel, frozen=True, extra="forbid"):
    """How images are split, kept and read, whichever source they come from."""

    validation: Annotated[
        float,
        Field(
            ge=0,
            le=0.5,
            description="share of train held out by the run's seed, unless the source brings its own",
        ),
    ] = 0.1
    limit: Annotated[
        int | None,
        Field(ge=2, description="train on so many images at most, drawn by the run's seed; null: on all"),
    ] = None
    memory_limit: Annotated[
        ByteSize,
        Field(gt=0, description="a folder that decodes to more (`4 GiB`, or bytes) is read anew every epoch"),
    ] = ByteSize(4 * 2**30)
    workers: Annotated[
        int,
        Field(
            ge=0,
            description="processes that decode a folder above memory_limit; 0: the training process does",
        ),
    ] = 2
    cache: Annotated[
        Path | None,
        AfterValidator(lambda path: path and path.expanduser().absolute()),
        Field(description="folder of decoded images, for all runs; null: eagleray in the user's cache folder"),
    ] = None


class DataChoice(Chosen, frozen=True):
    """Which images; beside a source's own settings stand those that every source shares."""

    kind: ClassVar[Kind] = "data"
    settings: DataSettings

    @classmethod
    def _parts(cls, declaration: Declaration, flat: dict[str, Any], recorded: Collection[str]) -> dict[str, Any]:
        shared = {key: flat.pop(key) for key in list(flat) if key in DataSettings.model_fields}
        config = _own(declaration, flat, recorded)
        return {"config": config, "settings": _settings(DataSettings, shared, declaration)}

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.config.model_dump(mode="json"),
            **self.settings.model_dump(mode="json"),
        }


if TYPE_CHECKING:
    Operation = str
else:
    Operation = Literal[*view.OPERATIONS]
_from_views: dict[str, Any] = {name: (kind, None) for name, kind in view.SETTINGS.items()}
_ViewSettings = create_model("_ViewSettings", __base__=Strict, **_from_views)


class Augment(_ViewSettings, frozen=True):
    """Changes to the views a method declares; what is null stays as the method has it."""

    only: Annotated[
        tuple[Operation, ...] | None,
        Field(description="keep these operations alone; the others are switched off"),
    ] = None
    exact: Annotated[
        bool, Field(description="torchvision's exact colour chain in place of the fused approximation")
    ] = False

    def changes(self) -> dict[str, Any]:
        """Return what the run sets itself: a field of `View` and its value."""
        return self.model_dump(exclude={"only", "exact"}, exclude_none=True)


class Labels(Strict, frozen=True):
    """The few labels of a semi-supervised method."""

    per_class: Annotated[int, Field(ge=1, description="labelled images of each class, chosen by the seed")] = 40
    ratio: Annotated[
        int, Field(ge=1, description="images in a step for each labelled one; 1 without unlabelled ones")
    ] = 7


class Evaluate(Strict, frozen=True):
    """What is measured, and when. Everything is chosen on validation; test is touched once, at the end.

    Beside these settings stands a section for each evaluator: those in `evaluators/`, and those of `also`.
    """

    every: Annotated[int, Field(ge=1, description="epochs between evaluations")] = 1
    test: Annotated[bool, Field(description="measure the test part once, at the end")] = True
    batch_size: Annotated[int, Field(ge=1, description="images encoded at once")] = 512
    also: Annotated[
        tuple[str, ...], Field(description="evaluators of your own: modules such as my_lab.participation")
    ] = ()

    @property
    def evaluators(self) -> dict[str, Declaration]:
        """What measures, by name."""
        return _evaluators(self.also)

    def when(self, evaluator: str) -> When:
        """When an evaluator measures."""
        return getattr(self, evaluator).when

    @model_validator(mode="wrap")
    @classmethod
    def _whole(cls, given: Any, handler: ModelWrapValidatorHandler["Evaluate"]) -> "Evaluate":
        """Validate with the sections of all evaluators."""
        if cls is not Evaluate or not isinstance(given, Mapping):
            return handler(given)
        found = evaluate_with(given.get("also", ())).model_validate(given)
        for name in found.evaluators:
            settings = getattr(found, name)
            if type(settings).model_validate(settings.model_dump(mode="json")) != settings:
                raise wrong(f"evaluate.{name}: a validator of its Config changes what a run file gives back")
        return found


def evaluate_with(also: Any) -> type[Evaluate]:
    """Return the `evaluate` section with the settings of every evaluator; `also` is what a file says, of any type."""
    return _evaluate_with(tuple(also) if isinstance(also, list | tuple) and all(map(_is_text, also)) else ())


@cache
def _evaluate_with(also: tuple[str, ...]) -> type[Evaluate]:
    sections: dict[str, Any] = {}
    for name, one in _evaluators(also).items():
        model = evaluator_settings(one)
        sections[name] = (Annotated[model, Field(description=one.summary)], Field(default_factory=model))
    return create_model("Evaluate", __base__=Evaluate, __doc__=Evaluate.__doc__, **sections)


def evaluator_settings(one: Declaration) -> type[BaseModel]:
    """Return the settings of an evaluator: its own, and `when`, which every evaluator has."""
    when = Annotated[When, Field(description="measured always (at every evaluation), at the end, or never")]
    default = one.values["when"]
    return create_model(one.name.rpartition(".")[2], __base__=one.Config, __doc__=one.doc, when=(when, default))


@cache
def _evaluators(also: tuple[str, ...]) -> dict[str, Declaration]:
    found = dict(declared("evaluator"))
    for module in also:
        name = module.rpartition(".")[2]
        if "." not in module:
            raise ConfigError(f"{module} is no dotted module: every evaluator that ships is there already")
        if name in found or name in Evaluate.model_fields:
            raise ConfigError(f"there is an evaluator or a setting called {name} already; rename {module}")
        found[name] = replace(find("evaluator", module), name=name)
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


class Checkpoints(Strict, frozen=True):
    """When the state of a run is saved; always at its end."""

    every_epochs: Annotated[int, Field(ge=1, description="epochs between checkpoints")] = 1
    every_steps: Annotated[int | None, Field(ge=1, description="also after so many steps")] = None
    keep: Annotated[int, Field(ge=1, description="the newest so many are kept")] = 2


class Tracking(Strict, frozen=True):
    """Where the numbers go."""

    uri: Annotated[
        str | None,
        Field(description="MLflow store or server; null: MLFLOW_TRACKING_URI, else a local SQLite file"),
    ] = None
    experiment: Annotated[str, Field(min_length=1, description="MLflow experiment")] = "eagleray"
    runs: Annotated[str, Field(min_length=1, description="folder of the runs' own directories")] = "runs"


def _own(declaration: Declaration, given: Mapping[str, Any], recorded: Collection[str]) -> BaseModel:
    """The settings of a method, an encoder or a source, which a run file must be able to keep."""
    config = _settings(declaration.Config, given, declaration, recorded)
    if unkept := lost(config):
        raise wrong(
            f"{declaration.kind}={declaration.name}: what its Config makes of {', '.join(unkept)} is not what a run "
            "file gives back; annotate it with the type that it has in the end, and let no validator change it twice"
        )
    return config


def _settings(
    model: type[Model], given: Mapping[str, Any], owner: Declaration, recorded: Collection[str] = ()
) -> Model:
    try:
        return settings_of(model, given, recorded)
    except ValidationError as error:
        unknown = [e["loc"][-1] for e in error.errors() if e["type"] == "extra_forbidden"]
        others = declared(owner.kind).values()
        owners = {str(key): [d.name for d in others if key in d.Config.model_fields] for key in unknown}
        raise nested(error.errors(), owner.name, owners) from None

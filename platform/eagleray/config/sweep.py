"""A sweep: one question, and the runs to answer it."""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_serializer, field_validator, model_validator

from eagleray.config.budget import Budget
from eagleray.config.floors import MEANINGS, FloorKind
from eagleray.config.metrics import check_metric, metrics_of, mode_of
from eagleray.config.mistakes import every_mistake, refuse, wrong
from eagleray.config.nested import branch, merged
from eagleray.config.registry import Kind, declared, find
from eagleray.config.run import Run, leaves, validated
from eagleray.config.sections import LONGEST, Strict
from eagleray.config.settings import as_param
from eagleray.config.told import Target
from eagleray.config.vary import each_value, range_of
from eagleray.contracts.address import without_password
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import Choice, Range, probes


def _one_of(kind: Kind) -> Callable[[dict[str, Any]], None]:
    """Make a schema list the names of a kind.

    It also allows the user's own modules.
    """

    def names(schema: dict[str, Any]) -> None:
        own = {"pattern": r"\.", "description": "a module of your own, such as my_lab.fancy"}
        schema["anyOf"] = [{"enum": list(declared(kind))}, own]

    return names


MOST_RUNS = 10_000  # of a sweep: all are validated before the first starts
NAME = r"^\w[\w.-]*$"


def _as_folder(name: str) -> str:
    """Return a name that may be that of a folder.

    Raises:
        ConfigError: it has other signs, or begins with a dot.
    """
    if not re.fullmatch(NAME, name):
        near = re.sub(r"[^\w.-]+", "-", name).strip(".-") or "my-sweep"
        raise wrong(
            f"name={name} cannot name a folder: it may have letters, digits, dots, - and _, and begins with a letter, "
            f"a digit or _; for example name={near}"
        )
    return name


class Sweep(Strict, frozen=True):
    """One question: a run, what varies, how to search."""

    name: Annotated[
        str,
        AfterValidator(_as_folder),
        Field(
            max_length=LONGEST,
            description="MLflow experiment and folder of its runs",
            json_schema_extra={"pattern": NAME},
        ),
    ]
    question: Annotated[str, Field(description="what the sweep should answer, in one sentence")] = ""
    run: Annotated[
        dict[str, Any],
        Field(default_factory=dict, description="a run file; missing keys have their defaults"),
    ]
    vary: Annotated[
        dict[str, Any],
        Field(
            min_length=1,
            description="key -> values ([0.1, 0.2]), a range ({log_uniform: [0.05, 1]}, {uniform: …}, "
            "{int: …}) or `declared`; the key `run` takes whole variants ([{method: mae, encoder: vit_tiny}, …])",
        ),
    ]
    search: Annotated[
        str,
        AfterValidator(lambda name: find("search", name).name),
        Field(
            default=None,
            description="which points are tried; tpe: Optuna's; by default grid if all values are listed and trials is "
            "not set, else random",
            json_schema_extra=_one_of("search"),
        ),
    ]
    trials: Annotated[
        int | None, Field(ge=1, description="points tried; null with grid: all of them, else some drawn by the seed")
    ] = None
    seeds: Annotated[int, Field(ge=1, description="runs of every point, each with its own seed")] = 1
    metric: Annotated[str, Field(description="what is compared: any number that a run reports")] = "knn"
    mode: Annotated[
        Literal["max", "min"],
        Field(default=None, description="whether higher or lower is better; by default as the metric declares"),
    ]
    scheduler: Annotated[
        str,
        AfterValidator(lambda name: find("scheduler", name).name),
        Field(description="what ends or changes trials", json_schema_extra=_one_of("scheduler")),
    ] = "none"
    grace: Annotated[int, Field(ge=1, description="epochs before asha may stop a trial, and between pbt's changes")] = 1
    stop_collapsed: Annotated[
        bool, Field(description="end a trial whose embeddings, features or guesses have collapsed")
    ] = True
    floor: Annotated[
        tuple[FloorKind, ...],
        Field(description=f"what the trials must beat: {'; '.join(map(': '.join, MEANINGS.items()))}. [] for none"),
    ] = ("random", "pixels")
    concurrent: Annotated[int | None, Field(ge=1, description="trials at a time; null: as many as fit")] = None
    cpus_per_trial: Annotated[float, Field(gt=0, description="cores of one worker of a trial")] = 1
    gpus_per_trial: Annotated[
        float,
        Field(ge=0, description="GPUs of one worker of a trial; a fraction packs several trials on one"),
    ] = 0

    keep: Annotated[
        Literal["best", "all"],
        Field(
            description="what stays when the sweep has ended; best: checkpoints and encoders of the three best points, "
            "and the weights of the others; all: everything"
        ),
    ] = "best"
    budget: Annotated[
        Budget, Field(description="when running trials stop at their next report; --resume continues them")
    ] = Budget()
    notify: Target = None

    @field_validator("vary", mode="before")
    @classmethod
    def _dotted(cls, vary: Any) -> Any:
        """Accept nested dictionaries of varied keys.

        `{augment: {flip: [0, 1]}}` is another way to write `{augment.flip: [0, 1]}`.
        """
        return dict(leaves(vary)) if isinstance(vary, Mapping) else vary

    @field_validator("vary")
    @classmethod
    def _valid_by_itself(cls, vary: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Check every varied value, whatever else is wrong.

        So mistakes here and in other keys are told together.
        """
        if "run" in info.data:
            draft = cls.model_construct(name="draft", run=info.data["run"], vary=vary, search="random")
            refuse([*every_mistake(lambda key: range_of(key, vary[key], draft.run), vary)])
            refuse([*every_mistake(draft.variant, (values for _, values in each_value(draft.ranges())))])
        return vary

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Check that whatever the search tries is valid."""
        self._settle_search()
        refuse([*self._contradictions()])
        for run in self.probes():
            check_metric(self.metric, run, every_epoch=self.compares_every_epoch)
            self._settle_mode(mode_of(self.metric, metrics_of(run)))
        return self

    def _repeats(self) -> Iterator[str]:
        """Yield a sentence for each value listed twice, however written, and for variants that are seeds of one run.

        The runs of the first would be copies, and count as evidence; those of the second are repetitions, not points.
        """
        listed: dict[tuple[str, str], tuple[str, int]] = {}
        for key, value, run in self.one_by_one():
            text, file = str(as_param(value)), run.file()
            seed = file.pop("seed") if key == "run" else 0
            known = key, json.dumps(file)
            if twin := listed.get(known):
                before, first = twin
                both = f"{text} twice" if text == before else f"{before} and {text}, which are the same run"
                yield (
                    f"vary.{key} lists {both}; list each value once"
                    if seed == first
                    else f"vary.run lists {before} and {text}, which differ in their seed alone; write one, and seeds=2"
                )
            listed[known] = text, seed

    def _contradictions(self) -> Iterator[str]:
        """Yield a sentence for each setting that another one forbids."""
        ranges = self.ranges()
        count = math.prod(len(span.values) if isinstance(span, Choice) else math.inf for span in ranges.values())
        if (runs := (self.trials or count) * self.seeds) > MOST_RUNS and runs < math.inf:
            key = "seeds" if self.seeds > MOST_RUNS else "trials" if self.trials else "vary"
            yield f"{key}: {runs:,} runs are too many (at most {MOST_RUNS:,}); vary less, or lower trials or seeds"
            return
        if not self.tries_all and self.trials is None:
            yield f"trials is missing: search={self.search} needs the number of points to try, for example trials=16"
        if not (self.learns or self.changes_trials) and (self.trials or 0) > count:
            yield f"trials={self.trials} is more than there are combinations ({count}); leave trials out to try all"
        if not self._scheduler["compares"] and self.grace != 1:
            yield f"grace={self.grace} has no effect with scheduler={self.scheduler}; remove it or use scheduler=asha"
        if len(set(self.floor)) < len(self.floor):
            yield f"floor lists one twice: {', '.join(self.floor)}; list each once"
        for key in ranges:
            if key.startswith("tracking.") or key == "evaluate.test":
                yield f"vary.{key} has no effect: a sweep sets {key} itself; remove it"
        if "seed" in ranges and self.seeds > 1:
            yield "vary.seed and seeds exclude each other: each point is run with its own seeds"
        for key, span in ranges.items():
            if self.tries_all and not isinstance(span, Choice):
                yield f"vary.{key} is a range, but search={self.search} needs a list of values; or use search=random"
            if self.changes_trials and not key.startswith(("optimizer.", "augment.", "method.")):
                yield (
                    f"vary.{key} cannot change during training, as scheduler={self.scheduler} requires; "
                    "keys of optimizer, augment and method can"
                )
        yield from self._repeats()

    @field_serializer("run")
    def _shared(self, run: dict[str, Any]) -> dict[str, Any]:
        uri = run.get("tracking", {}).get("uri")
        return merged(run, branch("tracking.uri", without_password(uri))) if uri else run  # sweep files get shared

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics of its runs.

        If methods give one name two meanings, the first meaning.
        """
        tables = [metrics_of(run) for run in self.probes()]
        return {name: metric for table in reversed(tables) for name, metric in table.items()}

    @property
    def compares_every_epoch(self) -> str | None:
        """The setting that compares unfinished trials, if any."""
        return f"scheduler={self.scheduler}" if self._scheduler["compares"] else None

    @property
    def changes_trials(self) -> bool:
        """Whether the scheduler changes settings of running trials."""
        return self._scheduler["changes"]

    @property
    def tries_all(self) -> bool:
        """Whether the search tries all combinations of listed values."""
        return find("search", self.search).values["tries_all"]

    @property
    def learns(self) -> bool:
        """Whether the search uses the results of others.

        Then no point is known from the start.
        """
        return find("search", self.search).values["learns"]

    @property
    def seed(self) -> int:
        """The first run's seed, which determines the points."""
        return int(self.run.get("seed", 0))

    @property
    def _scheduler(self) -> Mapping[str, Any]:
        return find("scheduler", self.scheduler).values

    def _settle_search(self) -> None:
        if self.search is None:
            listed = all(isinstance(span, Choice) for span in self.ranges().values())
            tries_all = listed and self.trials is None and not self.changes_trials
            object.__setattr__(self, "search", "grid" if tries_all else "random")  # as in _settle_mode

    def _settle_mode(self, better: Any) -> None:
        if self.mode is None and better is None:
            raise wrong(
                f"metric={self.metric} does not declare whether higher or lower is better: set mode=max or mode=min"
            )
        if self.mode is None:
            object.__setattr__(self, "mode", better)  # part of validation: nothing changes afterwards

    def ranges(self) -> dict[str, Range]:
        """Return the range of each varied key."""
        return {key: range_of(key, value, self.run) for key, value in self.vary.items()}

    def probes(self) -> Iterator[Run]:
        """Yield runs that the search may try.

        All of a grid (at most 500), else one for every end of every range.

        Raises:
            ConfigError: one of them is not a valid run.
        """
        yield from self.crossed() if self.tries_all else (run for _, _, run in self.one_by_one())

    def crossed(self) -> Iterator[Run]:
        """Yield runs with all combinations of values, at most 500.

        A range has its ends and one value between.

        Raises:
            ConfigError: one of them is not a valid run.
        """
        spans = {key: probes(span) for key, span in self.ranges().items()}
        points = itertools.islice(itertools.product(*spans.values()), 500)
        yield from (self.variant(dict(zip(spans, point, strict=True))) for point in points)

    def one_by_one(self) -> Iterator[tuple[str, Any, Run]]:
        """Yield each varied key and value, and a run that has it.

        All other varied keys have their first value; a range has its ends and one value between.

        Raises:
            ConfigError: one of them is not a valid run.
        """
        for key, values in each_value(self.ranges()):
            yield key, values[key], self.variant(values)

    def variant(self, values: Mapping[str, Any]) -> Run:
        """Return the run that has some varied values."""
        varied = (value if key == "run" else branch(key, value) for key, value in values.items())
        # The values are merged first: if one of them is a name, the settings next to it belong to that name.
        tree = merged(self.run, merged(*varied))
        if "notify" in tree:
            raise wrong("run.notify: a sweep tells of all its runs together; write notify beside run")
        return validated(Run, tree)

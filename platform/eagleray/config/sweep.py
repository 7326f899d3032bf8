"""A sweep: one question, and the runs to answer it."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from eagleray.config.floors import MEANINGS, FloorKind
from eagleray.config.metrics import check_metric, metrics_of, mode_of
from eagleray.config.mistakes import wrong
from eagleray.config.nested import branch, merged, parse_override, read_tree
from eagleray.config.registry import Kind, declared, find
from eagleray.config.run import Run, leaves, run_keys, validated
from eagleray.config.sections import Strict
from eagleray.config.settings import as_param
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import Choice, Range, probes, read_range


def _one_of(kind: Kind) -> Callable[[dict[str, Any]], None]:
    """Make a schema list the names of a kind.

    It also allows the user's own modules.
    """

    def names(schema: dict[str, Any]) -> None:
        own = {"pattern": r"\.", "description": "a module of your own, such as my_lab.fancy"}
        schema["anyOf"] = [{"enum": list(declared(kind))}, own]

    return names


class Sweep(Strict, frozen=True):
    """One question: a run, what varies, how to search."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$", description="MLflow experiment and folder of its runs")]
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
        Field(description="which points are tried; tpe: Optuna's", json_schema_extra=_one_of("search")),
    ] = "random"
    trials: Annotated[int | None, Field(ge=1, description="points tried; null with grid: all of them")] = None
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
    stop_collapsed: Annotated[bool, Field(description="end a trial whose embeddings have collapsed")] = True
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

    @field_validator("vary", mode="before")
    @classmethod
    def _dotted(cls, vary: Any) -> Any:
        """Accept nested dictionaries of varied keys.

        `{augment: {flip: [0, 1]}}` is another way to write `{augment.flip: [0, 1]}`.
        """
        return dict(leaves(vary)) if isinstance(vary, Mapping) else vary

    @model_validator(mode="after")
    def _runs(self) -> Self:
        """Check that whatever the search tries is valid."""
        ranges = self.ranges()
        if not self.tries_all and self.trials is None:
            raise wrong(f"trials is missing: search={self.search} needs the number of points to try")
        if not self._scheduler["compares"] and self.grace != 1:
            raise wrong(
                f"grace={self.grace} has no effect with scheduler={self.scheduler}; remove it or use scheduler=asha"
            )
        for key, span in ranges.items():
            if self.tries_all and not isinstance(span, Choice):
                raise wrong(
                    f"vary.{key} is a range, but search={self.search} needs a list of values; or use search=random"
                )
            if self.changes_trials and not key.startswith(("optimizer.", "augment.", "method.")):
                raise wrong(
                    f"vary.{key} cannot change during training, as scheduler={self.scheduler} requires; "
                    "keys of optimizer, augment and method can"
                )
            if key == "seed" and self.seeds > 1:
                raise wrong("vary.seed and seeds exclude each other: each point is run with its own seeds")
        self._check_repeats()
        for run in self.probes():
            check_metric(self.metric, run, every_epoch=self.compares_every_epoch)
            self._settle_mode(mode_of(self.metric, metrics_of(run)))
        return self

    def _check_repeats(self) -> None:
        """Refuse a value that is listed twice, however written.

        Its runs would be copies, and count as evidence.
        """
        listed: dict[tuple[str, str], str] = {}
        for key, value, run in self.one_by_one():
            text, file = str(as_param(value)), json.dumps(run.file())
            if before := listed.get((key, file)):
                both = f"{text} twice" if text == before else f"{before} and {text}, which are the same run"
                raise wrong(f"vary.{key} lists {both}; list each value once")
            listed[key, file] = text

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

    def _settle_mode(self, better: Any) -> None:
        if self.mode is None and better is None:
            raise wrong(
                f"metric={self.metric} does not declare whether higher or lower is better: set mode=max or mode=min"
            )
        if self.mode is None:
            object.__setattr__(self, "mode", better)  # part of validation: nothing changes afterwards

    def ranges(self) -> dict[str, Range]:
        """Return the range of each varied key."""
        return {key: self._range(key, value) for key, value in self.vary.items()}

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
        spans = {key: probes(span) for key, span in self.ranges().items()}
        first = {key: values[0] for key, values in spans.items()}
        for key, values in spans.items():
            yield from ((key, value, self.variant({**first, key: value})) for value in values)

    def variant(self, values: Mapping[str, Any]) -> Run:
        """Return the run that has some varied values."""
        varied = (value if key == "run" else branch(key, value) for key, value in values.items())
        # The values are merged first: if one of them is a name, the settings next to it belong to that name.
        return validated(Run, merged(self.run, merged(*varied)))

    def _range(self, key: str, value: Any) -> Range:
        if value == "declared":
            return self._declared_range(key)
        try:
            span = read_range(value)
        except ConfigError as error:
            raise wrong(f"vary.{key}: {error}") from None
        if key == "run" and not all(isinstance(each, Mapping) for each in probes(span)):
            raise wrong("vary.run takes variants of the run, each a mapping: [{method: simclr}, {method: byol}]")
        return span

    def _declared_range(self, key: str) -> Range:
        known = run_keys(self.run)
        marks = known[key].metadata if key in known else ()
        span = next((mark for mark in marks if isinstance(mark, Range)), None)
        if span is None:
            raise wrong(f"vary.{key}: it declares no range; write one, such as {{uniform: [0, 1]}} or [1, 2]")
        return span


def load_sweep(file: Path, overrides: list[str]) -> Sweep:
    """Read a sweep from a file and overrides.

    Overrides change keys of the sweep (`trials=4`), else of its run (`epochs=5`).

    Raises:
        ConfigError: as `load_run`.
    """
    trees = map(parse_override, overrides)
    changes = merged(*(tree if next(iter(tree)) in Sweep.model_fields else {"run": tree} for tree in trees))
    return validated(Sweep, merged(read_tree(file), changes))

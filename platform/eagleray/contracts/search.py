"""The contract of a search for sweep points.

It chooses the points that a sweep tries. This file imports no ray. A search is one class in one file of
`ray_backend/searches/`; the file's name is what `search=` takes. Its class variables are read from the source, so a
sweep file is checked without ray.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel

Sweep = Any  # a `config.Sweep`: contracts know nothing of the folders above them
Values = dict[str, Any]  # what is varied, by key


class Search:
    """A way to choose points."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Nothing to set: `vary`, `trials` and `seeds` belong to the sweep."""

    tries_all: ClassVar[bool] = False  # combinations of listed values, so every key needs a list; `trials` may limit it
    learns: ClassVar[bool] = False  # chooses a point by the results of others, so none is known from the start

    def assignments(self, sweep: Sweep) -> list[Values]:
        """Return the points, if the search does not learn.

        They are a function of the sweep file alone.
        """
        raise NotImplementedError

    def build(self, sweep: Sweep, config: Callable[[Any], Values], past: Mapping[int, Values]) -> Any:
        """Return Ray Tune's searcher of a search that learns.

        Args:
            sweep: whose points it chooses.
            config: from a `Point` to the configuration of its trial.
            past: values of the points that a resumed sweep has begun, by their number.
        """
        raise NotImplementedError

"""Transfer: the linear probe and kNN of frozen features on the images of another source."""

from typing import Any, ClassVar

from pydantic import BaseModel, Field

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import accuracy
from eagleray.contracts.metric import Metric, When
from eagleray.evaluators.knn import knn
from eagleray.evaluators.linear import train_probe


class Transfer(Evaluator):
    """The linear probe and kNN on the images of another source, as of Kornblith et al. 2018 (1805.08974) of the probe.

    Both are fitted on its training images, and measured on its validation images, at the end on its test set too. The
    network is that of the run, and prepares these images as its own: their side, and mean and deviation of pixels.
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        """The other images."""

        data: Any = Field(None, description="other labelled images, chosen and split as in `data`; grey or in colour")

    config: Config
    when: ClassVar[When] = "never"  # it needs other images

    metrics: ClassVar[dict[str, Metric]] = {
        "transfer_linear": Metric(
            "share of the images of evaluate.transfer.data that a linear classifier of the features classifies right",
            "higher",
            interval="wilson",
        ),
        "transfer_knn": Metric(
            "the same of a vote of the 200 nearest training images of that source", "higher", interval="wilson"
        ),
    }

    def __call__(self, encodings: Encodings) -> Found:
        there = encodings.elsewhere(self.config.data)
        train, shown = there.train, there.evaluated
        probe = train_probe(train, there.validation, seed=there.seed)
        right = accuracy(probe.predict(shown.features), shown.targets())
        return Found({"transfer_linear": right, "transfer_knn": knn(train, shown)[0]}, images=len(shown))

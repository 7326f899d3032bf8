"""Quality of pseudo-labels: what a method's own classifier guesses of training images without label.

The engine knows labels that training does not see; this evaluator alone compares them with the guesses.
"""

from typing import Annotated, ClassVar

from pydantic import BaseModel, Field

from eagleray.blocks.semi_supervised import guesses
from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.metric import Metric, Need

CLASSIFIER: frozenset[Need] = frozenset({"classifier"})  # no images are held out for it, so not "labels"
HIDDEN = "it is read off labels that training must not know"
USUAL = 0.95  # FixMatch's


class PseudoLabels(Evaluator):
    """Precision and recall of the classifier's confident guesses of unlabelled training images.

    Of at most 2,048 of them, evenly spaced, as they are: a method's own pseudo-labels are of views. Images whose class
    nobody knows do not count.
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        """What counts as confident."""

        threshold: Annotated[
            float | None,
            Field(
                ge=0,
                le=1,
                description="smallest confidence that counts; null: `method.threshold`, or 0.95 if there is none",
            ),
        ] = None

    metrics: ClassVar[dict[str, Metric]] = {
        "pseudo_precision": Metric(
            "share of the confident guesses of unlabelled training images that are right; left out while none is",
            "higher",
            no_goal=HIDDEN,
            needs=CLASSIFIER,
            interval="wilson",
        ),
        "pseudo_recall": Metric(
            "share of the unlabelled training images whose guess is confident and right",
            "higher",
            no_goal=HIDDEN,
            needs=CLASSIFIER,
            interval="wilson",
        ),
    }
    config: Config

    def __call__(self, encodings: Encodings) -> Found:
        logits, threshold = encodings.guesses, self._threshold(encodings)
        if logits is None:
            return Found({}, images=0)
        guess, counts = guesses(logits.features, threshold)
        certain, right = int(counts.sum()), int(counts[guess == logits.targets()].sum())
        numbers, images = {"pseudo_recall": right / len(logits)}, {"pseudo_recall": len(logits)}
        if certain:
            numbers["pseudo_precision"], images["pseudo_precision"] = right / certain, certain
        return Found(numbers, images, words=[f"pseudo-labels count here from a confidence of {threshold:g} on"])

    def _threshold(self, encodings: Encodings) -> float:
        own = getattr(getattr(encodings.method, "config", None), "threshold", None)
        if self.config.threshold is not None:
            return self.config.threshold
        return own if isinstance(own, float) else USUAL

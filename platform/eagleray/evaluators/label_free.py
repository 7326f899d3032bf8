"""One number to choose runs by where there are no labels; docs/label-free.md says how far it can be trusted."""

from typing import ClassVar

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import SAMPLES, evenly
from eagleray.contracts.metric import Metric
from eagleray.evaluators.collapse import collapse
from eagleray.evaluators.spectrum import spectrum

GATE = 0.5  # of the untrained network's effective rank: below it NESum says nothing of use


class LabelFree(Evaluator):
    """NESum behind a gate: features that use far fewer directions than before training have collapsed."""

    metrics: ClassVar[dict[str, Metric]] = {
        "label_free": Metric(
            "NESum of the features where their effective rank is at least half of the untrained network's; else how "
            "much of that is missing, which is negative",
            "higher",
            caution="it sees how evenly features vary, not what they say of the images; compare runs of one method "
            "and encoder, and look at their pictures",
            no_interval="that of nesum is its own",
            of_encoder=True,
        )
    }

    def __call__(self, encodings: Encodings) -> Found:
        features = evenly(encodings.evaluated.features, SAMPLES)
        before = collapse(encodings.untrained.features)["rank"]
        share = collapse(features)["rank"] / before if before else 1.0
        value = spectrum(features)["nesum"] if share >= GATE else share - 1
        return Found({"label_free": value}, images=len(features))

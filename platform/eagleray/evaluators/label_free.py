"""One number to choose runs by where there are no labels; docs/label-free.md says how far it can be trusted."""

from typing import ClassVar

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import SAMPLES
from eagleray.contracts.metric import Metric
from eagleray.evaluators.collapse import GATE, rank_share
from eagleray.evaluators.spectrum import nesum


class LabelFree(Evaluator):
    """NESum behind a gate: features that use far fewer directions than before training have collapsed."""

    metrics: ClassVar[dict[str, Metric]] = {
        "label_free": Metric(
            "NESum of the features where their effective rank is at least half of the untrained network's; else how "
            "much of that is missing, which is negative",
            "higher",
            caution="in a study of 150 runs its choice of ten lay 1.0 points of linear accuracy below the best, a "
            "random one 3.7 (docs/label-free.md); it sees how evenly features vary, not what they say of the images, "
            "so compare runs of one encoder and look at their neighbours and map (eagleray pictures)",
            no_interval="that of nesum is its own",
            of_encoder=True,
        )
    }

    def __call__(self, encodings: Encodings) -> Found:
        one, share = encodings.evaluated, rank_share(encodings)
        value = nesum(one.spectra[1].square()) if share >= GATE else share - 1
        return Found({"label_free": value}, images=min(len(one), SAMPLES))

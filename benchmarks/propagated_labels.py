"""Compare the labels that label propagation spreads with what its network guesses by itself.

    python benchmarks/propagated_labels.py RUN ... > docs/results/propagated_guesses.csv

RUN is the directory of a finished run of label propagation, or of another method with a classifier and few labels. Its
network, as it is at the end, encodes the training images and guesses their classes; labels are spread over the graph of
these features with the run's settings, or the method's defaults. A row tells of the training images without label how
often the spread labels (`graph`) and the guesses (`network`) are right, on how many they `differ`, and which of the two
is right there. `by_certainty` weighs each image by its label's certainty, as the loss does.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch

from eagleray.config import load_run
from eagleray.runs.restore import restored
from eagleray_methods.label_propagation import LabelPropagation, neighbour_graph, propagated, pseudo_labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    rows = [compared(place) for place in parser.parse_args().runs]
    writer = csv.DictWriter(sys.stdout, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)


@torch.no_grad()
def compared(directory: Path) -> dict[str, str | float]:
    run = load_run(directory / "run.yaml", [])
    built = restored(run, directory)
    method, images, seen = built.method.eval(), built.data.train, built.loader.labelled_set
    assert images.labels is not None
    assert seen is not None
    config = method.config if isinstance(method, LabelPropagation) else LabelPropagation.Config()
    places, targets = seen
    features = built.evaluation.encode(method.encode, images, built.autocast)
    guess = built.evaluation.encode(method.classify, images, built.autocast).argmax(1)
    graph = neighbour_graph(features, config.neighbours, config.power)
    scores = propagated(graph, places, targets, int(images.labels.max()) + 1, config.spread, config.iterations)
    label, certainty, _ = pseudo_labels(scores, places, targets)
    truth = torch.from_numpy(images.labels)
    others = torch.ones(len(images), dtype=torch.bool)
    others[places] = False
    right, known = (label == truth).double()[others], (guess == truth).double()[others]
    weight, differ = certainty[others], (label != guess)[others]
    return {
        "run": f"{run.method.name} {run.encoder.name} neighbours={config.neighbours} spread={config.spread:g}",
        "seed": run.seed,
        "graph": float(right.mean()),
        "network": float(known.mean()),
        "graph_by_certainty": float((right * weight).sum() / weight.sum()),
        "network_by_certainty": float((known * weight).sum() / weight.sum()),
        "differ": float(differ.double().mean()),
        "graph_where_they_differ": float(right[differ].mean()),
        "network_where_they_differ": float(known[differ].mean()),
    }


if __name__ == "__main__":
    main()

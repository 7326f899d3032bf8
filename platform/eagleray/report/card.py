"""The model card of an exported encoder: what it is, how good it is, and how to make it again."""

from collections.abc import Mapping
from typing import Any

import yaml

from eagleray.config.metrics import metrics_of, ordered
from eagleray.contracts.batch import DataInfo
from eagleray.contracts.interval import CONFIDENCE
from eagleray.report.numbers import number, spread
from eagleray.runs.record import Record
from eagleray.runs.restore import recorded_run

VERSIONS = ("eagleray", "python", "torch", "torchvision", "timm", "commit")


def card(record: Record, info: DataInfo, dim: int) -> str:
    """Write the card of a run's encoder, in Markdown.

    Its YAML is the run file itself, so that the run can be made again from the card alone; but without a password of
    tracking.uri, because cards get shared.

    Args:
        record: of the run.
        info: the images, as the method was told.
        dim: numbers in the features of an image.
    """
    run = record.file()
    seeds = same_but_for_seed(record)
    copies = ["its mirror image"] * info.mirrored
    copies += [f"copies moved by {info.shift} pixels up, down, left and right"] * bool(info.shift)
    mean = f" Features are the mean over an image and {' and '.join(copies)}." if copies else ""
    title = f"{run['method']['name']} with {run['encoder']['name']} on {run['data']['name']}"
    return f"""\
# Encoder: {title}

It turns an image into {dim} numbers, its features. The network was trained by {run["method"]["name"]} in the run
`{record.key}` ({record.name}, experiment {record.experiment}).

## Use

```python
from load_encoder import encode, load  # in this folder

features = encode(load(), ["photo.jpg"])  # [images, {dim}]
```

The loader reads image files as training did: upright, the shorter side reduced to {info.stored_size} pixels if it is
larger, then resized to {info.side} and the middle cut out, {"in grey" if info.channels == 1 else "in colour"},
scaled to 0..1, and normalised by mean {_numbers(info.mean)} and standard deviation {_numbers(info.std)}.{mean}

## Images

{_images(record, info)}

## Metrics

{_metrics(record, seeds)}

## Make it again

Save this as `run.yaml`, then `eagleray train run.yaml`:

```yaml
{yaml.safe_dump(run, sort_keys=False, allow_unicode=True).strip()}
```

{_versions(record)}

## Licence

Not stated here. It is for whoever has the rights to the images{_source(run)} to choose one.
"""


def same_but_for_seed(record: Record) -> dict[int, Mapping[str, float]]:
    """Return the metrics of the runs of one sweep that differ in the seed alone.

    Keys are the seeds; the run itself is among them.
    """
    parent = record.parent
    runs = [record] if parent is None else [each for each in parent.children() if each.kind == record.kind]
    file = {**record.file(), "seed": None}
    alike = [each for each in runs if each.state == "finished" and {**each.file(), "seed": None} == file]
    return {each.file()["seed"]: each.summary for each in alike}


def _images(record: Record, info: DataInfo) -> str:
    facts = record.data() or {}
    lines = [f"- {info.samples} training images of {info.image_size} x {info.image_size}"]
    for part, count in facts.get("images", {}).items():
        lines += [f"- {count} {part} images"] if part != "train" else []
    learnt = "training learnt from some of their labels" if record.file()["labels"] else "only evaluation used labels"
    lines += [f"- {info.classes} classes; {learnt}"] if info.classes else ["- no labels"]
    lines += [f"- fingerprint of images and labels: `{facts['digest']}`"] if facts else []
    return "\n".join(lines)


def _metrics(record: Record, seeds: Mapping[int, Mapping[str, float]]) -> str:
    if not record.summary:
        return "None was recorded."
    own, several = record.summary, len(seeds) > 1
    lines = [[f"`{name}`", number(own[name])] for name in ordered(own, metrics_of(recorded_run(record)))]
    if several:  # the test set is measured for one seed alone
        names = [line[0].strip("`") for line in lines]
        values = [[each[name] for each in seeds.values() if name in each] for name in names]
        lines = [[*line, spread(each) if len(each) > 1 else ""] for line, each in zip(lines, values, strict=True)]
    heads = ["metric", "this run", *([f"mean of seeds {', '.join(map(str, sorted(seeds)))}"] if several else [])]
    note = (
        f"± is half the {CONFIDENCE:.0%} interval of the mean, by the t distribution."
        if several
        else "From one seed, so that no interval can be given."
    )
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines))
    return f"{table}\n\n{note} `eagleray evaluators` explains the metrics."


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _versions(record: Record) -> str:
    known = {name: record.environment.get(name) for name in VERSIONS}
    dirty = ", with uncommitted changes" if record.environment.get("uncommitted_changes") else ""
    return f"Made with {', '.join(f'{name} {value}' for name, value in known.items() if value)}{dirty}."


def _source(run: Mapping[str, Any]) -> str:
    weights = run["encoder"].get("weights")
    return f", and to the public weights ({weights}) that training started from," if weights else ""

"""Mistakes in files and on the command line: one answer, before anything slow starts, whoever is asked."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from command_line import Outcome, command_line
from eagleray.config import load_run, load_sweep
from eagleray.config.sweep_file import is_sweep
from eagleray.runs import preflight

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def eagleray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)

    return command_line(monkeypatch, capsys)


def refused(outcome: Outcome) -> list[str]:
    assert outcome.code == 2
    assert outcome.err.startswith("eagleray: ")
    assert "Traceback" not in outcome.err
    return outcome.err.removeprefix("eagleray: ").splitlines()


FILES = {
    "sweep.yaml": "name: s\nvary: {augment.flip: [0, 1]}\n",
    "run.yaml": "epochs: 3\n",
    "typo.yaml": "epochs: 3\nmethod:\n  name: simclr\n  temprature: 0.1\n",
    "twice.yaml": "epochs: 3\nseed: 1\nepochs: 4\n",
    "nested.yaml": "name: s\nvary:\n  augment: {flip: [0, 1]}\n  augment.flip: [0, 0.5]\n",
    "itself.yaml": "run: &all\n  data: *all\nname: s\n",
    "date.yaml": "epochs: 2030-13-01\n",
    "trials.yaml": "name: s\ntrials: 500\nvary: {augment.flip: [0, 1]}\n",
    "dots.yaml": "name: ..\nvary: {augment.flip: [0, 1]}\n",
    "space.yaml": "name: my 🎉 sweep/1\nvary: {augment.flip: [0, 1]}\n",
    "unlisted.yaml": "name: s\nvary: {method.temperatur: [0.1, 0.2]}\n",
    "noname.yaml": "vary: {augment.flip: [0, 1]}\n",
}
LINES = [
    ("train epochs = 1", "there is no file epochs; settings are written key=value, without spaces: epochs=1"),
    ("train epochs 1", "there is no file epochs; settings are written key=value, without spaces: epochs=1"),
    ("sweep sweep.yaml epochs 1", "'epochs' is not a setting; write key=value"),
    ("train method.temperature=", "method.temperature= has no value"),
    ("train method=", "method= has no value"),
    ("train data.root=photos", "unknown key data.root: digits has no such setting, folder, "),
    ("train data.root=photos", "for example data=folder data.root=photos"),
    ("train sweep.yaml", "sweep.yaml is a sweep file, as it has `vary`: use `eagleray sweep sweep.yaml`"),
    ("sweep run.yaml", "run.yaml is a run file, as it has no `vary`: use `eagleray train run.yaml`"),
    ("check typo.yaml", "typo.yaml:4:3: unknown key method.temprature; did you mean method.temperature?"),
    ("train epochs=1 run.yaml seed=-1", "seed=-1 is out of range"),
    ("check run.yaml epochs=0", "epochs=0 is out of range"),
    ("check twice.yaml", "twice.yaml:3:1: epochs is written twice, first at twice.yaml:1:1; remove one of them"),
    ("check nested.yaml", "nested.yaml:4:3: vary.augment.flip is written twice, first at nested.yaml:3:13"),
    ("check itself.yaml", "run.data contains itself"),
    ("check date.yaml", "date.yaml is not YAML"),
    ("check trials.yaml", "trials.yaml:2:1: trials=500 is more than there are combinations (2)"),
    ("check dots.yaml", "dots.yaml:1:1: name=.. cannot name a folder"),
    ("check space.yaml", "for example name=my-sweep-1"),
    ("check unlisted.yaml", "unlisted.yaml:2:8: unknown key method.temperatur; did you mean method.temperature?"),
    ("check noname.yaml", "noname.yaml: name is missing"),
    ("train tracking.runs=run.yaml/runs", "run.yaml/runs/run cannot be written, as "),
    ("train tracking.runs=/proc/runs", "/proc/runs"),
    ("preview --out run.yaml/views.png", "run.yaml/views.png cannot be written, as "),
    ("preview --out /proc/views.png", "/proc/views.png cannot be written"),
    ("train workers=64", "workers=64 need more cores than this machine has ("),
    ("sweep sweep.yaml workers=64", "workers=64 need more cores than this machine has ("),
    ("train --address 127.0.0.1:1", "no Ray answers at --address 127.0.0.1:1 (connection refused)"),
    ("train workers=2 --address 127.0.0.1:1", "no Ray answers at --address 127.0.0.1:1 (connection refused)"),
    ("sweep sweep.yaml --address nowhere", "--address nowhere is not HOST:PORT, ray://HOST:PORT or auto"),
    ("sweep sweep.yaml --extend", "there is no sweep in runs/s to extend; leave --extend out"),
    ("sweep sweep.yaml --extend --resume", "leave --resume out"),
    ("sweep sweep.yaml --price 2", "--no-probe and --price belong to --plan"),
]


@pytest.mark.parametrize(("line", "said"), LINES, ids=[line for line, _ in LINES])
def test_a_mistake_is_answered_in_one_sentence_and_leaves_nothing(eagleray: Any, line: str, said: str):
    for name, text in FILES.items():
        Path(name).write_text(text)
    before = sorted(Path.cwd().rglob("*"))
    (told,) = refused(eagleray(*line.split()))
    assert said in told
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_setting_from_the_command_line_has_no_place_in_the_file(eagleray: Any):
    Path("run.yaml").write_text("epochs: 3\nseed: 1\n")
    assert refused(eagleray("check", "run.yaml", "epochs=0", "seed=2")) == ["epochs=0 is out of range (allowed: >= 1)"]


def test_all_mistakes_of_a_file_are_told_together(eagleray: Any):
    Path("s.yaml").write_text(
        "name: s\nrun: {epochz: 3, augment: {flip: 2}}\nvary:\n  method.temperatur: [0.1]\n  batch_size: [64, 1]\n"
        "trails: 3\nscheduler: ashaa\n"
    )
    told = refused(eagleray("check", "s.yaml"))
    assert sorted(line.partition(": ")[0] for line in told) == [
        "s.yaml:2:28", "s.yaml:2:7", "s.yaml:4:3", "s.yaml:5:3", "s.yaml:6:1", "s.yaml:7:1"]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "search"), [("", "grid"), ("trials: 2\n", "random"), ("search: tpe\ntrials: 2\n", "tpe")]
)
def test_the_search_fits_what_is_varied(eagleray: Any, settings: str, search: str):
    Path("s.yaml").write_text(f"name: s\n{settings}vary: {{augment.flip: [0, 1], batch_size: [64, 128]}}\n")
    assert f"is a valid sweep: {search} search over augment.flip, batch_size" in eagleray("check", "s.yaml").out


def test_check_says_how_large_a_sweep_is(eagleray: Any):
    Path("s.yaml").write_text("name: s\nrun: {epochs: 10}\nvary: {augment.flip: [0, 0.5, 1]}\nseeds: 2\n")
    assert eagleray("check", "s.yaml").out.endswith("3 points x 2 seeds = 6 runs, 60 epochs\n")
    assert eagleray("check", "s.yaml", "scheduler=asha").out.endswith("= 6 runs, at most 60 epochs\n")
    assert eagleray("check", "s.yaml", "search=tpe", "trials=7", "seeds=1").out.endswith("7 runs, at most 70 epochs\n")


# --- check, train and sweep say the same -----------------------------------------------------------------------

FOLDER = {"name": "folder", "root": "photos"}
CANNOT_WORK = [
    ({"batch_size": 100000}, "batch_size=100000 is larger than the data: 1295 training images", False),
    ({"batch_size": 64, "data": FOLDER}, "batch_size=64 is larger than the data: 22 training images", False),
    ({"method": "fixmatch", "labels": {"per_class": 500}}, "labels.per_class=500: train has ", False),
    ({"method": "fixmatch", "batch_size": 8, "data": FOLDER}, "method=fixmatch needs labels, and these images", False),
    ({"augment": {"grayscale": 0.5}}, "augment.grayscale=0.5 has no effect: these images are grey already", False),
    ({"data": {"name": "folder", "root": "nowhere"}}, "data.root=", False),
    ({"tracking": {"runs": "run.yaml/x"}}, "run.yaml/x", False),
    ({"tracking": {"uri": "some/folder"}}, "is not an MLflow store", False),
    ({"workers": 64}, "workers=64 need more cores", False),
    ({"method": "mae", "encoder": {"patch_size": 3}}, "encoder.patch_size=3 does not divide the image size", True),
]


@pytest.mark.parametrize(("run", "said", "needs_full"), CANNOT_WORK, ids=[said for _, said, _ in CANNOT_WORK])
def test_check_train_and_sweep_refuse_the_same_in_the_same_words(
    eagleray: Any, run: dict[str, Any], said: str, needs_full: bool
):
    Path("photos").mkdir()
    for number in range(30):
        Image.effect_noise((12, 12), 50 + number).save(f"photos/{number}.png")
    Path("run.yaml").write_text(yaml.safe_dump(run))
    Path("s.yaml").write_text(yaml.safe_dump({"name": "s", "vary": {"seed": [0, 1]}, "run": run, "metric": "rankme"}))
    full = ["--full"] if needs_full else []
    for command, file in (("train", "run.yaml"), ("sweep", "s.yaml")):
        (told,) = refused(eagleray(command, file))
        assert said in told
        assert refused(eagleray("check", file, *full)) == [told]
        assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"metric": "kn"}, "metric=kn: simclr reports no such number; did you mean knn?"),
        ({"vary": {"batch_size": [64, 100000]}}, "batch_size=100000 is larger than the data"),
        ({"run": {"data": FOLDER, "batch_size": 8}}, "metric=knn: these images have no labels"),
        ({"run": {"data": {"validation": 0}}}, "there are no validation images to measure it on"),
        ({"scheduler": "asha", "grace": 30}, "grace=30 is longer than a trial: run.epochs=10"),
        ({"run": {"device": "cuda"}}, "run.device=cuda needs a share of a GPU"),
        ({"budget": {"until": "2020-01-01"}}, "budget.until=2020-01-01 is past"),
    ],
)
def test_check_refuses_what_sweep_refuses(eagleray: Any, settings: dict[str, Any], said: str):
    Path("photos").mkdir()
    for number in range(30):
        Image.effect_noise((12, 12), 50 + number).save(f"photos/{number}.png")
    Path("s.yaml").write_text(yaml.safe_dump({"name": "s", "vary": {"augment.flip": [0, 1]}, **settings}))
    (told,) = refused(eagleray("check", "s.yaml"))
    assert said in told
    assert refused(eagleray("sweep", "s.yaml")) == [told]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train run.yaml", "device=cuda: there is no GPU here: set device=auto or device=cpu, or run on a cluster"),
        ("sweep s.yaml", "gpus_per_trial=0.5: there is no GPU here: leave it out, or run on a cluster with --address"),
    ],
)
def test_check_misses_a_gpu_as_train_and_sweep_do(
    eagleray: Any, monkeypatch: pytest.MonkeyPatch, command: str, said: str
):
    monkeypatch.setattr(preflight, "may_have_gpu", lambda: False)
    Path("run.yaml").write_text("device: cuda\n")
    Path("s.yaml").write_text("name: s\nvary: {augment.flip: [0, 1]}\ngpus_per_trial: 0.5\n")
    (told,) = refused(eagleray(*command.split()))
    assert said in told
    assert refused(eagleray("check", command.split()[1])) == [told]


# --- any mutation ----------------------------------------------------------------------------------------------

VALID = [
    "method: {name: simclr, temperature: 0.3}\nencoder: {name: convnet, width: 64}\nepochs: 5\nbatch_size: 128\n"
    "augment:\n  flip: 0.5\n  jitter: 0.4\noptimizer: {lr: 0.002, warmup_epochs: 1}\nseed: 3\n",
    "method: byol\ndata: {name: digits, validation: 0.2, limit: 500}\nlabels: null\nprecision: fp32\n"
    "checkpoints: {keep: 3, every_epochs: 2}\nevaluate:\n  every: 2\n  knn: {when: end}\ntracking: {experiment: e}\n",
    "name: s\nquestion: Which?\nrun:\n  method: {name: vicreg}\n  epochs: 4\n  data: {limit: 300}\n"
    "vary:\n  augment.flip: [0, 0.5]\n  optimizer.lr: [0.001, 0.01]\nseeds: 2\nmetric: linear\nfloor: [pixels]\n",
    "name: r\nsearch: random\ntrials: 6\nrun: {method: simclr}\nvary:\n  method.temperature: {log_uniform: [0.1, 1]}\n"
    "  batch_size: [64, 128]\nscheduler: asha\ngrace: 2\nstop_collapsed: false\ncpus_per_trial: 1\n",
]
VALUES = [
    "-1", "0", "1", "3", "0.3", "1.0e+30", ".nan", "[]", "[1, 2]", "{}", "{a: 1}", "null", "true", "text", "''",
    "2030-01-01", "'..'", "[null]", "{uniform: [0, 1]}", "*gone", "!!python/none x", "\"\\ud83c\"", "2030-13-01",
    "1e400",
]  # fmt: skip
KEY = re.compile(r"(?<![\w.])([a-z][\w.]*)(?=: )|(?<![\w.])([a-z][\w.]*)(?=:\n)")


def misspelt(key: str, rng: random.Random) -> str:
    place = rng.randrange(1, len(key))
    return rng.choice([key[:place] + key[place - 1] + key[place:], key[:place] + key[place + 1 :]])


def mutated(text: str, rng: random.Random) -> tuple[str, str, str, int]:
    """Return a kind of mutation, the text with it, the key that it is about, and that key's line."""
    match = rng.choice(list(KEY.finditer(text)))
    key, kind = match.group(), rng.choice(["typo", "value", "value", "value", "twice", "lost"])
    line = text.count("\n", 0, match.start()) + 1
    if kind == "typo":
        wrong = misspelt(key, rng)
        return kind, text[: match.start()] + wrong + text[match.end() :], wrong, line
    if kind == "twice":
        return kind, text[: match.start()] + f"{key}: 1, " + text[match.start() :], key, line
    if kind == "lost":
        return kind, "\n".join(each for number, each in enumerate(text.split("\n"), 1) if number != line), key, line
    value = re.compile(r": *(\{[^{}]*\}|\[[^\[\]]*\]|[^,{}\n\[\]]+)").match(text, match.end())
    assert value is None or value.start() == match.end()
    if value is None:
        return "twice", text[: match.start()] + f"{key}: 1, " + text[match.start() :], key, line
    return kind, text[: match.end()] + f": {rng.choice(VALUES)}" + text[value.end() :], key, line


def resolved(file: Path) -> Any:
    if is_sweep(yaml.safe_load(file.read_text()) or {}):
        return load_sweep(file, []).model_dump(mode="json")
    return load_run(file, []).file()


@pytest.mark.slow
def test_500_mutations_of_valid_files_are_refused_at_their_place_or_change_what_is_run(eagleray: Any):
    """No traceback; what is refused names line and key, and the nearest right key; nothing accepted is unused."""
    rng, file = random.Random(7), Path("f.yaml")
    kinds = dict.fromkeys(["typo", "value", "twice", "lost"], 0)
    accepted = 0
    originals = {}
    for text in VALID:
        file.write_text(text)
        originals[text] = resolved(file)
    for _ in range(500):
        text = rng.choice(VALID)
        kind, changed, key, line = mutated(text, rng)
        file.write_text(changed)
        outcome = eagleray("check", "f.yaml")
        assert outcome.code in (0, 2), changed
        assert "Traceback" not in outcome.err
        if outcome.code == 0:
            accepted += 1
            same = resolved(file) == originals[text]
            assert not same or yaml.safe_load(changed) == yaml.safe_load(text) or kind == "lost", changed
            continue
        kinds[kind] += 1
        told = outcome.err.removeprefix("eagleray: ")
        if re.match(r"batch_size=256 ", told):  # the default, which is in no file
            continue
        assert told.startswith("f.yaml"), (changed, told)
        if kind == "typo":
            assert re.search("unknown key|a range is one of", told), (changed, told)
        if kind != "lost":
            assert re.search(rf"f\.yaml:{line}:\d+: |line {line}, column|is not YAML|is missing", told), (changed, told)
        if kind in ("typo", "twice") and key != "name" and "is not YAML" not in told:
            assert any(part in told for part in key.split(".")), (changed, told)
    assert min(kinds.values()) > 5
    assert 50 < accepted < 400

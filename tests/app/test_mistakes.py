"""Mistakes in files and on the command line: one answer, before anything slow starts, whoever is asked."""

import random
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from command_line import Outcome, command_line
from eagleray.config import load_run, load_sweep
from eagleray.config.sweep_file import is_sweep
from eagleray.runs import preflight
from recorded_runs import recorded_run, recorded_sweep

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def eagleray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)

    return command_line(monkeypatch, capsys)


def refused(outcome: Outcome) -> list[str]:
    """Return what is told; the note that code of a plugin is run may come first."""
    assert outcome.code == 2
    told = re.sub(r"^note: running code of .*\n", "", outcome.err)
    assert told.startswith("eagleray: ")
    assert "Traceback" not in told
    return told.removeprefix("eagleray: ").splitlines()


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
    ("check itself.yaml", "itself.yaml:2:9: *all contains itself; write its keys out"),
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
    assert "3 points x 2 seeds = 6 runs, 60 epochs\n" in eagleray("check", "s.yaml").out
    assert "= 6 runs, at most 60 epochs\n" in eagleray("check", "s.yaml", "scheduler=asha").out
    assert "7 runs, at most 70 epochs\n" in eagleray("check", "s.yaml", "search=tpe", "trials=7", "seeds=1").out


def test_check_says_what_will_be_measured(eagleray: Any):
    Path("run.yaml").write_text("method: simclr\nevaluate: {every: 2, protocols: [linear, knn, lidar]}\n")
    assert "measured by knn (every 2 epochs); lidar, linear (at the end)\n" in eagleray("check", "run.yaml").out
    Path("s.yaml").write_text("name: s\nrun: {evaluate: {protocols: [knn]}}\nvary: {evaluate.every: [1, 2]}\n")
    told = eagleray("check", "s.yaml").out
    assert told.endswith("measured by knn (every 1 epoch)\nmeasured by knn (every 2 epochs)\n")


# --- a hundred more ----------------------------------------------------------------------------------------------

FOLDERS = {  # folder -> its images
    "photos": 30, "classes/cat": 20, "classes/dog": 20, "one": 1, "val_beside/cat": 4, "val_beside/dog": 4,
    "val_beside/val": 4, "unclear/cat": 4, "unclear/dog": 4, "unclear/unknown": 4, "depths/cat": 4, "depths/dog/big": 4,
    "twice/train/cat": 2, "twice/Training/cat": 2, "held/train/cat": 4, "held/train/dog": 4, "held/test/cow": 2,
}  # fmt: skip
MORE_FILES = {
    "texts/a.txt": "no image", "file": "", "empty.yaml": "", "words.yaml": "hello\n", "list.yaml": "- a\n",
    "colon.yaml": "method:simclr\n", "tab.yaml": "epochs: 1\n\tseed: 2\n", "indent.yaml": "epochs: 1\n  seed: 2\n",
    "quote.yaml": 'name: "s\n', "alias.yaml": "epochs: *gone\n", "python.yaml": "epochs: !!python/name:os.system\n",
    "null.yaml": "name: s\nvary:\n", "none.yaml": "name: s\nvary: {}\n", 
    "number.yaml": "name: 5\nvary: {seed: [0, 1]}\n",
    "path.yaml": "name: s\nrun: run.yaml\nvary: {seed: [0, 1]}\n", "mixed.yaml": "name: s\n",
    "asha.yaml": "name: s\nscheduler: asha\ngrace: 3\nrun: {epochs: 2}\nvary: {seed: [0, 1]}\n",
    "pbt.yaml": "name: s\nscheduler: pbt\ntrials: 2\nvary: {batch_size: [64, 128]}\n",
    "gone.csv": "path,label\n0.png,cat\n1.png,dog\n99.png,dog\n", "both.csv": "path,label\n0.png,cat\n0.png,dog\n",
    "column.csv": "path\n0.png\n", "blank.csv": "", "cats.csv": "path,label\n0.png,cat\n1.png,cat\n",
    "three.csv": "path,label\n0.png,cat\n1.png,dog,yes\n", "names.csv": "a,b,c\n0.png,cat,1\n1.png,dog,1\n",
    "pathless.csv": "path,label\n,cat\n1.png,dog\n",
    "broken.py": "class A(:\n", "nothing.py": "x = 1\n",
    "bare.py": "from eagleray.contracts.method import Method\n\n\nclass A(Method):\n    '''A.'''\n",
    "two.py": "from eagleray.contracts.method import Method\n\n\nclass A(Method): ...\n\n\nclass B(Method): ...\n",
}  # fmt: skip
MORE = [
    # names
    ("trian epochs=1", "no such command 'trian'; did you mean 'train'? (see `eagleray --help`)"),
    ("--versoin", "no such option: --versoin"),
    ("train --epochs 1", "there is no option --epochs: settings are written without dashes, epochs=VALUE"),
    ("train --method.temperature 1", "settings are written without dashes, method.temperature=VALUE"),
    ("train --foo", "no such option: --foo (see `eagleray train --help`)"),
    ("train --profile 2", "invalid value for '--profile': it must be greater than or equal to 5"),
    ("train --profile 5 --resume", "leave one of them out"),
    ("sweep", "missing argument 'SWEEP.yaml' (see `eagleray sweep --help`)"),
    ("runs foo", "no such command 'foo' (see `eagleray runs --help`)"),
    ("train method=SimCLR", "there is no method 'SimCLR'; did you mean simclr?"),
    ("train method=null", "method=null is not a name; `eagleray methods` lists them"),
    ("train method=my_lab.fancy", "there is no method 'my_lab.fancy': no such module can be imported from here"),
    ("train data=CIFAR10", "there is no dataset 'CIFAR10'; did you mean cifar10?"),
    *((f"train {key}=~nemo/x", "there is no user nemo here; a folder of that name is ./~nemo") for key in (
        "data=folder data.root", "data=folder data.root=photos data.cache", "data=cifar10 data.root", "tracking.runs",
        "encoder=pretrained encoder.run",
    )),
    ("train method=~nemo/f.py", "~nemo/f.py: there is no user nemo here"),
    ("train data=folder data.root=photos data.labels=~nemo/l.csv", "there is no user nemo here"),
    ("train encoder=pretrained encoder.run=3", "encoder.run=3 is not a path"),
    ("train encoder=resnet18 encoder.weights=3", "encoder.weights=3 is not a path"),
    ("sweep empty.yaml", "empty.yaml is empty; a sweep needs a `name` and what to `vary`"),
    ("train data=photos", "there is no dataset 'photos'; did you mean data=folder data.root=photos?"),
    ("train encoder=efficientnet_b00", "did you mean efficientnet_b0?"),
    ("train lr=0.1", "unknown key lr; did you mean optimizer.lr?"),
    ("train EPOCHS=1", "unknown key EPOCHS"),
    ("train 학습=1", "unknown key 학습"),
    ("train augment.only=[crp]", "augment.only=crp is not one of crop, "),
    ("train evaluate.also=[foo]", "evaluate.also: foo is neither a FILE.py nor a module"),
    ("train tracking.experiment=..", "tracking.experiment=.. names nothing: it needs a letter"),
    ("train method=byol method.temperature=0.1", "unknown key method.temperature: byol has no such setting, "),
    # values
    ("train method.temperature=.inf", "method.temperature=inf is not a finite number (allowed: > 0)"),
    ("train method.temperature=1e400", "method.temperature=1e400 is not a finite number (allowed: > 0)"),
    ("train method.temperature=.nan", "method.temperature=nan is out of range (allowed: > 0)"),
    ("train method.temperature=true", "method.temperature=true is not a number (allowed: > 0)"),
    ("train seed=99999999999999999999", "seed=99999999999999999999 is out of range (allowed: 0 to 1e+09)"),
    ("train seed=0.5", "seed=0.5 is not a whole number (allowed: 0 to 1e+09)"),
    ("train data.limit=1", "data.limit=1 is out of range (allowed: >= 2)"),
    ("train data.validation=1", "data.validation=1 is out of range (allowed: 0 to 0.5)"),
    ("train data.memory_limit=lots", "data.memory_limit=lots is not a size, such as 4 GiB"),
    ("train augment.flip=2", "augment.flip=2 is out of range (allowed: 0 to 1)"),
    ("train augment.only=crop", "augment.only=crop is not a list; lists are written [a, b], an empty one []"),
    ("train optimizer=sgd", "optimizer=sgd is not a section of keys; its keys are optimizer.name, optimizer.lr"),
    ("train device=tpu", "device=tpu is not one of auto, cpu, cuda"),
    ("train method=fixmatch labels.ratio=0", "labels.ratio=0 is out of range (allowed: >= 1)"),
    ("train method=fixmatch labels.per_class=500", "ask for no more"),
    ("train labels.per_class=5", "labels: simclr uses no labels; remove the section"),
    ("train method=supervised labels.per_class=null", "leaves no label; set it, or labels.fraction"),
    ("train method=finetune", "encoder.run is missing (directory of a finished run)"),
    ("train method=finetune encoder.run=nowhere", "encoder.run: "),
    ("train method=finetune encoder.run=photos", "photos is not the directory of a run (it has no record.json)"),
    ("train method=finetune encoder.run=runs/s/a", "a is a sweep; name one of its runs"),
    ("train method=distillation method.teacher=nowhere", "method.teacher: "),
    ("check run.yaml method=finetune encoder.run=nowhere", "nowhere is not the directory of a run"),
    ("train encoder.run=photos", "pretrained has; for example encoder=pretrained encoder.run=photos"),
    ("check run.yaml encoder=resnet18 encoder.weights=gone.pth", "gone.pth does not exist; correct it"),
    ("train method=mae encoder=convnet", "mae works on a ViT's patches; use encoder=vit_tiny"),
    ("train tracking.uri=databrick", "is not an MLflow store; use sqlite:///FILE.db"),
    ("train tracking.uri=sqlite://x.db", "'sqlite://x.db' (tracking.uri or MLFLOW_TRACKING_URI) is not an MLflow"),
    ("train --address 127.0.0.1:99999", "no Ray answers at --address 127.0.0.1:99999"),
    # writing a setting
    ("train epochs: 1", "settings are written key=value, without spaces: epochs=1"),
    ("train =1", "'=1' is not a setting; write key=value"),
    ("train method..temperature=1", "'method..temperature=1' is not a setting; write key=value"),
    ("train epochs=[1", "epochs: '[1' is not YAML: expected ',' or ']'"),
    ("train photos", "photos is a folder, not a run file; images: data=folder data.root=photos"),
    ("train run.yaml run.yaml", "name only one run file, not 2: run.yaml, run.yaml"),
    # files
    ("train photos/0.png", "photos/0.png is not text in UTF-8: save it as UTF-8, or name another file"),
    ("check photos", "photos is a folder; name a file in it"),
    ("check words.yaml", "words.yaml has no settings: a run or sweep file maps keys to values"),
    ("check list.yaml", "list.yaml has no settings"),
    ("check colon.yaml", "colon.yaml has no settings"),
    ("check tab.yaml", "tab.yaml is not YAML: a tab in line 2, column 1; write spaces instead"),
    ("check indent.yaml", "indent.yaml is not YAML: mapping values are not allowed here in line 2, column 7"),
    ("check quote.yaml", "quote.yaml is not YAML: "),
    ("check alias.yaml", "alias.yaml is not YAML: found undefined alias 'gone' in line 1, column 9"),
    ("check python.yaml", "python.yaml is not YAML: could not determine a constructor for the tag"),
    ("check null.yaml", "null.yaml:2:1: vary=null is not a section of keys"),
    ("check none.yaml", "none.yaml:2:1: vary is empty; name at least one"),
    ("check number.yaml", "number.yaml:1:1: name=5 is not text"),
    ("check path.yaml", "path.yaml:2:1: run=run.yaml is not a section of keys"),
    ("check mixed.yaml", "mixed.yaml: vary is missing"),
    ("check asha.yaml", "asha.yaml:3:1: grace=3 is longer than a trial: run.epochs=2"),
    ("check pbt.yaml", "pbt.yaml:4:8: vary.batch_size cannot change during training"),
    # images
    ("train data=folder", "data.root is missing (the folder"),
    ("train data=folder data.root=file", "file is not a folder"),
    ("train data=folder data.root=texts", "texts contains no images: a.txt is not named like one"),
    ("train data=folder data.root=one", "data=folder has 1 training image, and at least 2 are needed; add some"),
    ("train data=folder data.root=photos data.labels=folders", "has fewer than two sub-folders of images"),
    ("train data=folder data.root=photos data.labels=folder", "did you mean folders?"),
    ("train data=folder data.root=val_beside", "val_beside/val would be trained on: move the training images"),
    ("train data=folder data.root=unclear", "if its images have no label, rename it `unlabelled`"),
    ("train data=folder data.root=depths", "contains images at different depths: set data.labels=folders"),
    ("train data=folder data.root=twice", "are the same part: move the images of one into the other"),
    ("train data=folder data.root=held", "is in none of the class folders"),
    ("train data=folder data.root=classes", "batch_size=256 is larger than the data: 28 training images"),
    ("train data=folder data.root=photos data.labels=gone.csv", "99.png (line 4); write paths relative to data.root"),
    ("train data=folder data.root=photos data.labels=no.csv", "no.csv cannot be read: No such file"),
    ("train data=folder data.root=photos data.labels=both.csv", "two labels, 'cat' in line 2 and 'dog' in line 3"),
    ("train data=folder data.root=photos data.labels=column.csv", "has one column: separate path and label"),
    ("train data=folder data.root=photos data.labels=blank.csv", "is empty: it needs a line `path,label`"),
    ("train data=folder data.root=photos data.labels=cats.csv", "one class, 'cat': at least two are needed"),
    ("train data=folder data.root=photos data.labels=three.csv", "has 3 columns, and line 1 has 2: put texts"),
    ("train data=folder data.root=photos data.labels=names.csv", "call the two that count `path` and `label`"),
    ("train data=folder data.root=photos data.labels=pathless.csv", "has the label 'cat' and no path: add the path"),
    ("train data=folder data.root=photos data.labels=photos", "is not one of auto, folders, none or a file (.csv"),
    # sweeps
    ("sweep photos", "photos is a folder; name a file in it"),
    ("sweep sweep.yaml --resume", "nothing unfinished in runs/s to resume; --extend adds values, seeds or trials to a"),
    ("sweep sweep.yaml nam=x", "unknown key nam; did you mean name?"),
    ("sweep sweep.yaml trails=3", "unknown key trails; did you mean trials?"),
    ("sweep sweep.yaml name=a/b", "for example name=a-b"),
    ("sweep sweep.yaml metric=loss", "metric=loss is no goal: losses of different settings have different scales"),
    ("sweep sweep.yaml metric=accuracy", "simclr has no classifier"),
    ("sweep sweep.yaml metric=test_knn", "the test set is used once, by the winner"),
    ("sweep sweep.yaml mode=maximum", "mode=maximum is not one of max, min; did you mean max?"),
    ("sweep sweep.yaml search=random", "trials is missing: search=random needs the number of points to try, for"),
    ("sweep sweep.yaml search=bayes trials=3", "there is no search 'bayes' (there are: grid, random, tpe)"),
    ("sweep sweep.yaml scheduler=ashaa", "there is no scheduler 'ashaa'; did you mean asha?"),
    ("sweep sweep.yaml grace=30", "grace=30 has no effect with scheduler=none"),
    ("sweep sweep.yaml seeds=[0,1]", "seeds=[0, 1] is not a whole number (allowed: >= 1)"),
    ("sweep sweep.yaml floor=pixels", "floor=pixels is not a list; lists are written [a, b], an empty one []"),
    ("sweep sweep.yaml floor=[random,random]", "floor lists one twice: random, random; list each once"),
    ("sweep sweep.yaml budget=8", "budget=8 is not a section of keys; its keys are budget.hours, budget.until"),
    ("sweep sweep.yaml budget.hours=0", "budget.hours=0 is out of range (allowed: > 0)"),
    ("sweep sweep.yaml budget.minutes=5", "unknown key budget.minutes (known: budget.hours, budget.until)"),
    ("sweep sweep.yaml budget.until=25:00", "budget.until=25:00 is no time; write 18:00"),
    ("sweep sweep.yaml notify=http://", "notify is neither a command nor an http(s) address"),
    ("sweep sweep.yaml cpus_per_trial=64", "cpus_per_trial=64 is more cores than this machine has"),
    ("sweep sweep.yaml gpus_per_trial=1.5", "only less than one GPU can be a fraction; set 1 or 2"),
    ("sweep sweep.yaml vary.augment.flip=[0,0]", "eagleray: vary.augment.flip lists 0 twice; list each value once"),
    ("sweep sweep.yaml vary.augment.flip=[0,0.0]", "lists 0 and 0.0, which are the same run"),
    ("sweep sweep.yaml vary.augment.flip=[]", "vary.augment.flip: write a list of values"),
    ("sweep sweep.yaml 'vary.augment.flip={uniform: [1, 0]}'", "a range goes from a lower to a higher number"),
    ("sweep sweep.yaml 'vary.augment.flip={unifrm: [0, 1]}'", "not unifrm; did you mean uniform?"),
    ("sweep sweep.yaml vary.seed=[0,1] seeds=2", "vary.seed and seeds exclude each other"),
    ("sweep sweep.yaml vary.tracking.runs=[a,b]", "vary.tracking.runs has no effect: a sweep sets tracking.runs"),
    ("sweep sweep.yaml vary.run=[a,b]", "vary.run takes variants of the run, each a mapping"),
    ("sweep sweep.yaml --price -1", "invalid value for '--price': it must be greater than or equal to 0"),
    # commands on what is there
    ("compare tracking.runs=photos", "there is no sweep in photos; name a sweep, an experiment or a directory"),
    ("compare epochs=3", "epochs=3 has no effect on this command; it takes tracking.uri=URI and tracking.runs=FOLDER"),
    ("compare photos", "photos holds no runs; name the directory of a sweep, a run or an experiment"),
    ("compare runs/s --mode best", "--mode best is neither max nor min"),
    ("compare runs/s --metric dead", "--metric dead is no goal: it shows collapse"),
    ("compare runs/s --csv nowhere/x.csv", "--csv nowhere/x.csv cannot be written: No such file or directory"),
    ("compare runs/s method=byol", "method=byol has no effect on this command; it takes tracking.uri=URI"),
    ("compare runs/s tracking.uri=foo", "'foo' (tracking.uri or MLFLOW_TRACKING_URI) is not an MLflow store"),
    ("ui epochs=3", "epochs=3 has no effect on this command"),
    ("ui --port 99999", "invalid value for '--port': it must be less than or equal to 65535"),
    ("ui tracking.uri=sqlite:///gone.db", "There is no MLflow store at"),
    ("sync photos", "photos holds no runs; name the directory that contains them"),
    ("evaluate photos", "photos is not the directory of a run (it has no record.json); `eagleray runs ls` lists them"),
    ("evaluate runs/s/a", "runs/s/a is a sweep; name one of its runs"),
    ("embed nowhere photos --out x.npz", "nowhere is not the directory of a run"),
    ("embed runs/e/one photos --out file", "--out file exists already; name another file, or add --force"),
    ("embed runs/e/one photos --out nowhere/x.npz", "--out nowhere/x.npz: there is no folder nowhere"),
    ("embed runs/e/one photos --out x.npz --device gpu", "--device gpu is not one of auto, cpu, cuda"),
    ("embed runs/e/one photos", "missing option '--out'"),
    ("export runs/e/one --format pt", "invalid value for '--format': 'pt' is not one of 'safetensors'"),
    ("export runs/e/one --out file", "--out file is a file; name a folder"),
    ("export runs/e/one --out photos", "--out photos is not empty; name another folder, or add --force"),
    ("export photos", "photos is not the directory of a run"),
    ("runs ls nowhere", "there is no folder nowhere; name the one that contains the runs"),
    ("runs best photos", "photos holds no runs"),
    ("runs best nowhere", "there is no directory nowhere; `eagleray runs ls` lists the runs"),
    ("runs show photos", "photos is not the directory of a run"),
    ("watch photos", "there is no run or sweep photos: name its directory"),
    ("docs simclrr", "there is no page 'simclrr'; did you mean simclr?"),
    ("schema foo", "none of 'foo'"),
    ("try epochs=0", "epochs=0 is out of range"),
    # plugin files
    ("new metod x.py", "there is no template of a metod; there are: method, encoder, dataset, evaluator"),
    ("new method My.py", "the file's name becomes the name of the method; write lower case, as in my_method.py"),
    ("new method run.yaml", "run.yaml exists already; name another file"),
    (
        "new method nowhere/x.py",
        "nowhere/x.py cannot be written: No such file or directory, as nowhere is not there; name another file",
    ),
    ("new method", "missing argument 'FILE.py'"),
    ("check nowhere.py", "nowhere.py; put it back where it was, or name another"),
    ("check broken.py", "broken.py, line 1: invalid syntax"),
    ("check nothing.py", "declares a method, encoder, dataset or evaluator, and this one declares none"),
    ("check bare.py:B", "and this one declares none called B"),
    ("check two.py", "declares several: A (method), B (method); name one, as in two.py:A"),
    ("train method=./bare.py", "A declares no recipes"),
    ("train data=./nothing.py", "must define exactly one Dataset, and defines 0"),
]  # fmt: skip
SLOW = {"torch", "ray", "mlflow"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one folder with a bit of everything, for all of these mistakes: none of them changes it."""
    desk = tmp_path_factory.mktemp("desk")
    for name, text in {**FILES, **MORE_FILES}.items():
        (desk / name).parent.mkdir(exist_ok=True)
        (desk / name).write_text(text)
    for folder, count in FOLDERS.items():
        (desk / folder).mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((12, 12), 50 + number).save(desk / folder / f"{number}.png")
    recorded_sweep(desk / "runs/s/a")[1].finish("finished")
    recorded_run(desk / "runs/e/one")
    return desk


@pytest.mark.parametrize(("line", "said"), MORE, ids=[line for line, _ in MORE])
def test_a_hundred_mistakes_more(
    desk: Path, line: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """One sentence that names the thing and the remedy, before torch is imported; nothing is left behind."""
    monkeypatch.chdir(desk)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    imported, before = SLOW & sys.modules.keys(), sorted(desk.rglob("*"))
    outcome = command_line(monkeypatch, capsys)(*shlex.split(line))
    (told,) = refused(outcome)
    assert said.removeprefix("eagleray: ") in told
    assert not said.startswith("eagleray: ") or outcome.err.startswith(said)
    assert sorted(desk.rglob("*")) == before
    assert SLOW & sys.modules.keys() == imported


LOCKED = [
    *("train locked/x.yaml", "check locked/x.yaml", "sweep locked/x.yaml", "train tracking.runs=locked/runs"),
    *("train data=folder data.root=locked/x", "train method=finetune encoder.run=locked/x", "compare locked/x"),
    *("evaluate locked/x", "embed locked/x photos --out x.npz", "embed runs/e/one photos --out locked/x.npz"),
    *("export locked/x", "new method locked/x.py", "runs ls locked/x", "runs show locked/x", "runs best locked/x"),
    *("sync locked/x", "watch locked/x"),
]


@pytest.fixture
def locked(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder that may not be entered, for root too."""

    def kept_out(do: Any) -> Any:
        def tried(path: Path, *args: Any, **kwargs: Any) -> Any:
            if "locked" in path.parts[:-1]:
                raise PermissionError(13, "Permission denied", str(path))
            return do(path, *args, **kwargs)

        return tried

    for name in ("stat", "open"):
        monkeypatch.setattr(Path, name, kept_out(getattr(Path, name)))


@pytest.mark.usefixtures("locked")
@pytest.mark.parametrize("line", LOCKED)
def test_what_may_not_be_read_or_written_is_named(
    desk: Path, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(desk)
    (told,) = refused(command_line(monkeypatch, capsys)(*line.split()))
    assert "locked" in told
    assert re.search("may not|cannot be|no directory|is no", told), told


def test_runs_beside_a_folder_that_may_not_be_entered_are_listed(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "locked").mkdir()
    recorded_run(tmp_path / "e/one")
    kept_out = Path.exists

    def exists(path: Path, **options: Any) -> bool:
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return kept_out(path, **options)

    monkeypatch.setattr(Path, "exists", exists)
    listed = command_line(monkeypatch, capsys)("runs", "ls", str(tmp_path)).out
    assert "e/one" in listed
    assert f"cannot be read: {tmp_path / 'locked'}: " in listed


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

"""A plugin is one file: written by `new`, named by its path, found everywhere, and checked."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

import eagleray_methods
from eagleray.app.cli import app
from eagleray.app.plugin import KINDS, QUIET, SHORT, findings, small_settings, the_declaration, trains, write
from eagleray.config import Sweep, load_run, read_run, validated
from eagleray.config.registry import find, found_here
from eagleray.config.schema import run_schema, sweep_schema
from eagleray.config.search_points import points
from eagleray.contracts.errors import ConfigError
from eagleray.loop import train
from eagleray.runs.assemble import assemble
from eagleray.runs.method_checks import CHECKS
from method_cases import METHODS, needed

TINY = ["data.limit=64", "batch_size=16", "epochs=1", "threads=1", "device=cpu", "evaluate.linear.when=never"]
INIT = "last_norm=True)\n"
BOTH = "first, second = self.projector(self.encoder(torch.cat(batch.views))).chunk(2)"
RETURN = "        return StepResult(F.cross_entropy(logits, own), "
TEACHER = """
    def after_step(self, progress: Progress) -> None:
        for old, new in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            old.data.lerp_(new.data, 0.1)
"""

Edits = dict[str, str]
# the bug -> (edits of the template, the check that catches it, what it says)
PLANTED: dict[str, tuple[Edits, str, str]] = {
    "a teacher that receives the gradient": (
        {
            INIT: f"{INIT}        self.teacher = copy.deepcopy(encoder)\n",
            BOTH: "first, second = (self.projector(n(v)) for n, v in zip((self.encoder, self.teacher), batch.views))",
            "second.detach()])\n": f"second.detach()])\n{TEACHER}",
        },
        "stopped gradients",
        r"teacher\.blocks\.0\.weight.* follows other weights in after_step and receives a gradient too; make it with",
    ),
    "negatives of its own worker only": (
        {
            "gather(second)": "second",
            "own_rows(torch.arange(len(everywhere), device=logits.device))": "torch.arange(len(first))",
        },
        "two workers",
        "two workers do not compute what one does: loss, .* differs; gather what is compared",
    ),
    "state outside of checkpoints": (
        {
            INIT: f"{INIT}        self.mean = torch.zeros(())\n",
            RETURN: "        logits = logits * (1 + self.mean)\n"
            f"        self.mean = 0.9 * self.mean + second.detach().mean()\n{RETURN}",
        },
        "resuming",
        "of the next step differs, because mean is in no checkpoint; keep state in buffers",
    ),
    "random numbers without a seed": (
        {RETURN: f"        logits = logits + torch.randn_like(logits)\n{RETURN}"},
        "randomness",
        r"a step draws from the global random numbers of torch, .*; draw with self\.rng",
    ),
    "a generator of its own": (
        {RETURN: f"        logits = logits * np.random.default_rng().normal()\n{RETURN}"},
        "randomness",
        "two equal steps differ in loss, ",
    ),
    "an exponential that overflows": (
        {"F.cross_entropy(logits, own)": "-(logits[own, own].exp() / logits.exp().sum(1)).log().mean()"},
        "finite numbers",
        r"with method\.temperature=0\.002 the loss or a gradient is not finite; use logsumexp",
    ),
    "a root without an epsilon": (
        {"F.cross_entropy(logits, own)": "F.cross_entropy(logits, own) - first.var(0).sqrt().mean()"},
        "finite numbers",
        "with black images and equal images, whose embeddings are equal, the loss or a gradient is not finite; norm",
    ),
    "embeddings of the wrong shape": (
        {"[first.detach(), second.detach()]": "[first.detach().T]"},
        "shapes",
        r"the embeddings of a StepResult have the shapes \[\[128, 8\]\]; return one \[8, D\] for each view",
    ),
    "features of the wrong shape": (
        {
            "second.detach()])\n": "second.detach()])\n\n    def encode(self, images):\n"
            "        return self.encoder(images)[None]\n"
        },
        "shapes",
        r"encode turns 5 images into \[1, 5, 384\]; return \[5, 384\], a row for each image",
    ),
    "an error of all images": (
        {
            "second.detach()])\n": "second.detach()])\n\n    has_error = True\n\n    def error(self, images):\n"
            "        return images.square().mean()\n"
        },
        "shapes",
        r"error turns 5 images into \[\]; return \[5\], a number for each image",
    ),
    "an error that depends on the other images": (
        {
            "second.detach()])\n": "second.detach()])\n\n    has_error = True\n\n    def error(self, images):\n"
            "        return (images - images.mean(0)).square().mean((1, 2, 3))\n"
        },
        "shapes",
        "an image's error is another among others; compute it of that image alone",
    ),
    "a picture of the wrong shape": (
        {
            "second.detach()])\n": "second.detach()])\n\n    def picture(self, images):\n"
            "        return {'seen': images[0]}\n"
        },
        "picture",
        r"a picture has the shapes {'seen': \[3, 8, 8\]}; return \[N, 3, s, s\] for each title",
    ),
    "a picture that is another each time": (
        {
            "second.detach()])\n": "second.detach()])\n\n    def picture(self, images):\n"
            "        return {'drawn': torch.randn_like(images)}\n"
        },
        "picture",
        r"two equal pictures differ in drawn; draw with self\.rng\(0\)",
    ),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fancy(edits: Edits | None = None, place: str = "fancy.py") -> str:
    """Write the template of a method, with a few edits."""
    path = Path(place)
    write("method", path)
    text = path.read_text().replace("import torch\n", "import copy\n\nimport numpy as np\nimport torch\n", 1)
    for old, new in (edits or {}).items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return f"./{place}"


def complaints(check: str, edits: Edits) -> list[str]:
    run = load_run(None, [f"method={fancy(edits)}", "encoder.width=8"])
    return list(CHECKS[check](run))


@pytest.mark.parametrize("bug", [bug for bug, (_, check, _) in PLANTED.items() if check != "two workers"])
def test_a_planted_bug_is_caught_by_its_check(here: Path, bug: str):
    edits, check, says = PLANTED[bug]
    (found,) = complaints(check, edits)
    assert re.search(says, found), found


@pytest.mark.slow
def test_check_prints_a_line_for_each_check_and_the_remedy(here: Path):
    """In a process of its own, where the workers are started too; what is shown is all that fails."""
    edits, _, says = PLANTED["negatives of its own worker only"]
    done = subprocess.run(
        [sys.executable, "-m", "eagleray", "check", fancy(edits)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert [line.split(maxsplit=1) for line in lines if not line.startswith(" ")] == [
        ["failed" if check == "two workers" else "ok", check] for check in (*CHECKS, "training")
    ]
    assert re.search(says, done.stdout)
    note = f"note: running code of {here / 'fancy.py'}, to read what it declares (see `eagleray docs security`)\n"
    assert done.stderr == f"{note}eagleray: fancy.py: 1 of 9 checks failed\n"


@pytest.mark.parametrize("check", [check for check in CHECKS if check != "two workers"])
def test_the_template_of_a_method_has_none_of_these_bugs(here: Path, check: str):
    assert complaints(check, {}) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["method", "encoder"])
def test_a_template_passes_its_checks(here: Path, kind: str):
    write(kind, here / "my_own.py")
    one = the_declaration("./my_own.py")
    found = {each.check: each.complaints for each in findings(one, ["epochs=1"])}
    assert found == {check: [] for check in (*CHECKS, "training")}


@pytest.mark.parametrize("kind", ["dataset", "evaluator"])
def test_a_template_trains(here: Path, kind: str):
    write(kind, here / "my_own.py")
    assert [each.complaints for each in findings(the_declaration("my_own.py"), ["epochs=1", f"data.cache={here}"])] == [
        []
    ]
    assert len((here / "my_own.py").read_text().splitlines()) <= 60


@pytest.mark.slow
def test_a_collapse_is_a_failed_check(here: Path):
    """SimSiam's stop-gradient is on no parameter of its own: only training shows that it is missing."""
    simsiam = (Path(eagleray_methods.__file__).parent / "simsiam.py").read_text()
    Path("mine.py").write_text(simsiam.replace("first.detach(), second.detach()", "first, second", 1))
    assert simsiam != Path("mine.py").read_text()
    text = Path("mine.py").read_text().replace("list(targets))", "[z.detach() for z in targets])")
    Path("mine.py").write_text(text)
    (found,) = trains(load_run(None, ["method=./mine.py", *SHORT, *QUIET, "encoder.width=8"]))
    assert re.search(r"after \d+ steps it has collapsed: .+ \(z_std 0\.\d+, z_rank \d\.", found)


def test_code_that_crashes_is_shown_with_its_line(here: Path):
    one = the_declaration(fancy({"first, second = self.proj": "first, second = self.prj"}))
    (found,) = findings(one)  # the checks after it would repeat it
    assert (found.check, len(found.complaints)) == ("shapes", 1)
    place = f"{here / 'fancy.py'}, line "
    assert re.fullmatch(
        rf"{re.escape(place)}\d+: AttributeError: 'Fancy' object has no attribute 'prj\w*'.*", found.complaints[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if not needed(name)])
def test_the_training_of_a_check_raises_no_false_alarm(name: str):
    """A fifth of its epochs, because all of them take 80 seconds; with all, no method is blamed either."""
    fitting = {
        "swav": ["method.prototypes=32"],
        "w_mse": ["method.sub_batch=32", "method.projection=8"],
        "colorization": ["data=letters"],
        "context_prediction": ["image_size=32"],
        "data2vec": ["method.blocks=1"],
        "jigsaw": ["image_size=32"],
    }.get(name, [])
    assert list(trains(load_run(None, [*small_settings(find("method", name)), *fitting, "epochs=5"]))) == []


def test_a_method_whose_defaults_do_not_fit_a_small_batch_is_not_called_wrong():
    method = find("method", "w_mse")
    complaint = next(finding for finding in findings(method, ["method.sub_batch=5"]) if finding.complaints)
    assert complaint.complaints[0].startswith("method.sub_batch=5 does not divide batch_size=8: take a divisor of it")
    assert complaint.complaints[0].endswith(
        "a check is small (data.limit=256 batch_size=32): type what fits after the file's name"
    )


@pytest.mark.slow
def test_a_method_of_one_file_is_found_everywhere(here: Path):
    """In the list, its settings, both schemas, a run, a sweep with its declared range, and what is recorded."""
    name = fancy()
    assert len(Path(name).read_text().splitlines()) <= 60
    listed = CliRunner().invoke(app, ["methods"]).output
    assert re.search(r"\./fancy\.py\s+One sentence", listed)
    assert re.search(r"temperature\s+0\.2\s+0\.05 to 1", CliRunner().invoke(app, ["methods", name]).output)
    schema = run_schema()
    jsonschema.validate({"method": name}, schema)
    jsonschema.validate({"method": {"name": name, "temperature": 0.3}}, schema)
    jsonschema.validate({"method": {"name": "./elsewhere/other.py", "anything": 1}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"method": {"name": name, "temperatur": 0.3}}, schema)
    tree = {
        "name": "s",
        "run": {"method": name, "epochs": 1},
        "vary": {"method.temperature": "declared"},
        "search": "random",
        "trials": 3,
    }
    jsonschema.validate(tree, sweep_schema())
    runs = [point.run(validated(Sweep, tree)) for point in points(validated(Sweep, tree))]
    assert len({run.method.config.model_dump()["temperature"] for run in runs}) == 3
    assert {run.file()["method"]["name"] for run in runs} == {str(here / "fancy.py")}
    assert runs[0].method.title == "fancy"


def test_a_recorded_run_finds_its_file_again_from_anywhere(here: Path, monkeypatch: pytest.MonkeyPatch):
    (here / "elsewhere").mkdir()
    run = load_run(None, [f"method={fancy()}", *TINY])
    file = json.loads(json.dumps(run.file()))
    monkeypatch.chdir(here / "elsewhere")
    again = read_run(file)
    *_, last = train(again, here / "run")
    assert last.done
    assert type(assemble(again).method).__name__ == "Fancy"
    (here / "fancy.py").unlink()
    with pytest.raises(ConfigError) as caught:
        read_run(file)
    assert (
        str(caught.value) == f"method: there is no file {here / 'fancy.py'}; put it back where it was, or name another"
    )


def test_an_edited_file_is_read_anew(here: Path):
    name = fancy()
    assert load_run(None, [f"method={name}"]).method.config.model_dump()["temperature"] == 0.2
    text = Path(name).read_text().replace("= 0.2", "= 0.3").replace("StepResult(F.", "StepResult(2 * F.")
    Path(name).write_text(text)
    run = load_run(None, [f"method={name}"])
    assert run.method.config.model_dump()["temperature"] == 0.3
    assert "2 * F" in Path(sys.modules[run.method.declaration.load().__module__].__file__ or "").read_text()


def test_one_class_of_several_is_named(here: Path):
    text = Path(fancy()).read_text()
    Path("two.py").write_text(text + text[text.index("class Fancy") :].replace("class Fancy", "class Other"))
    with pytest.raises(ConfigError, match=r"defines 2: Fancy, Other; name one as FILE\.py:Fancy"):
        load_run(None, ["method=two.py"])
    with pytest.raises(ConfigError, match="defines no Method called Othr; did you mean Other"):
        load_run(None, ["method=./two.py:Othr"])
    run = load_run(None, ["method=./two.py:Other"])
    assert (run.method.name, run.method.title) == (f"{here / 'two.py'}:Other", "Other")
    assert run.method.declaration.load().__name__ == "Other"
    with pytest.raises(ConfigError, match=r"declares several: Fancy \(method\), Other \(method\); name one, as in two"):
        the_declaration("two.py")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["new", "methd", "x.py"], "there is no template of a methd; there are: method, encoder, dataset, evaluator"),
        (["new", "method", "taken.py"], "taken.py exists already; name another file"),
        (["new", "method", "My-One.py"], "write lower case, as in my_method.py"),
        (
            ["new", "method", "nowhere/fancy.py"],
            "fancy.py cannot be written: No such file or directory, as nowhere is not there; name another",
        ),
        (["check", "absent.py"], "absent.py; put it back where it was, or name another"),
        (
            ["check", "taken.py"],
            "a file to check declares a method, encoder, dataset or evaluator, and this one declares none",
        ),
        (["train", "method=./absent.py"], "there is no file"),
    ],
)
def test_a_mistake_with_plugin_files_is_said(here: Path, arguments: list[str], says: str):
    (here / "taken.py").write_text("x = 1\n")
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert says in str(result.exception)
    assert sorted(path.name for path in here.iterdir()) == ["taken.py"]


@pytest.mark.parametrize("place", ["fancy.py", "{here}/my lab/fancy.py"])
def test_the_command_that_new_names_finds_the_file(here: Path, place: str):
    (here / "my lab").mkdir()
    file = Path(place.format(here=here))
    said = CliRunner().invoke(app, ["new", "method", str(file)]).stdout
    _, _, setting = shlex.split(re.search(r"\((eagleray train .*?)\)", said)[1])  # type: ignore[index]
    assert load_run(None, [setting]).method.name == str(file.absolute())
    assert f"eagleray check {shlex.quote(str(file))})" in said


def test_what_is_no_file_is_no_plugin(here: Path):
    """Emacs marks an edited file by a link that leads nowhere."""
    Path(".#fancy.py").symlink_to("me@host.1:2")
    Path("folder.py").mkdir()
    name = fancy()
    assert list(found_here("method")) == [name]


def test_there_is_a_template_for_each_kind_that_new_names():
    assert sorted(KINDS) == sorted(
        path.stem for path in (Path(write.__code__.co_filename).parent / "templates").glob("[a-z]*.py")
    )

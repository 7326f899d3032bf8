"""The generated pages show what the code declares, and those in docs/ are up to date."""

from pathlib import Path

import pytest
import yaml

from eagleray.config.registry import declared, find
from eagleray.report.catalogue import metrics_page, over_all_methods, page, read_runs, recipes

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_page_in_docs_is_what_the_code_says_now():
    made = page(read_runs(DOCS / "results" / "methods.csv"))
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == made, "make docs"
    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == metrics_page(), "make docs"


def test_the_sweep_over_methods_has_all_that_need_no_trained_run():
    text = (ROOT / "sweeps" / "methods.yaml").read_text(encoding="utf-8")
    assert over_all_methods(text) == text, "make docs"
    listed = [variant["method"] for variant in yaml.safe_load(text)["vary"]["run"]]
    assert sorted([*listed, "distillation", "finetune"]) == sorted([*declared("method"), "supervised", "supervised"])


def test_every_method_names_its_paper_its_settings_and_both_recipes():
    sections = page({}).split("\n## ")[1:]
    assert [section.partition("\n")[0] for section in sections] == list(declared("method"))
    for section, method in zip(sections, declared("method").values(), strict=True):
        assert all(f"`method.{key}`" in section for key in method.Config.model_fields)
        assert "Undefined" not in section  # pydantic's word for a setting without default
        assert "`recipe=small`: " in section
        assert "`recipe=paper`: " in section
        assert "http" in section or method.name == "supervised"  # a baseline has no paper


def test_the_papers_updates_stand_with_its_recipe():
    assert recipes(find("method", "fixmatch"))["recipe=paper"].endswith(", steps 1048576")
    assert "steps" not in recipes(find("method", "simclr"))["recipe=paper"]


def test_numbers_are_the_means_over_the_seeds_of_a_methods_first_point(tmp_path: Path):
    runs = tmp_path / "runs.csv"
    runs.write_text(
        "trial,run,seed,state,linear,accuracy,knn\n"
        "001-mae,mae vit_tiny depth=4,0,finished,0.5126,,0.25\n"
        "001-mae,mae vit_tiny depth=4,1,finished,0.5130,,0.15\n"
        "003-mae,mae vit_tiny depth=2,0,finished,0.5,,0.3\n"
        "002-simclr,simclr,0,collapsed,0.4,,0.1\n"
        "raw pixels,,0,floor,0.36,,0.3\n"
    )
    reached = read_runs(runs)
    assert reached == {"mae": {"linear": pytest.approx(0.5128), "knn": pytest.approx(0.2)}}
    rows = {line.split("](#")[0].removeprefix("| ["): line for line in page(reached).splitlines() if "](#" in line}
    assert rows["mae"].endswith("| a ViT | 0.200 | 0.513 |  |")
    assert rows["simclr"].endswith("|  |  |  |  |")
    assert rows["dino"].endswith("|  |  |  |  |")
    assert rows["distillation"].endswith("| a few labels, a trained run |  |  |  |")
    assert rows["fixmatch"].endswith("| a few labels |  |  |  |")

"""The page of all methods says what the code declares, and the one in docs/ is the one that the code makes."""

from pathlib import Path

from eagleray.config.registry import declared
from eagleray.report.catalogue import metrics_page, page, read_leaderboards

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_in_docs_is_what_the_code_says_now():
    made = page(read_leaderboards(sorted((DOCS / "results").glob("*.csv"))))
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == made, "make docs"
    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == metrics_page(), "make docs"


def test_every_method_names_its_paper_its_settings_and_both_recipes():
    sections = page({}).split("\n## ")[1:]
    assert [section.partition("\n")[0] for section in sections] == list(declared("method"))
    for section, method in zip(sections, declared("method").values(), strict=True):
        assert all(f"`method.{key}`" in section for key in method.Config.model_fields)
        assert "Undefined" not in section  # pydantic's word for a setting without default
        assert "`recipe=small`: " in section
        assert "`recipe=paper`: " in section
        assert "http" in section or method.name == "supervised"  # a baseline has no paper


def test_numbers_are_those_of_the_leaderboard(tmp_path: Path):
    board = tmp_path / "board.csv"
    board.write_text(
        "rank,trial,run,linear,linear_std,runs,state,accuracy,knn\n"
        "1,001-mae,mae vit_tiny depth=4,0.5126,0.001,2,finished,,0.2\n"
        "2,002-simclr,simclr,0.4,0.001,2,collapsed,,0.1\n"
        "3,raw pixels,,0.36,,1,floor,,0.3\n"
    )
    reached = read_leaderboards([board])
    assert reached == {"mae": {"linear": 0.5126, "knn": 0.2}}
    rows = {line.split("](#")[0].removeprefix("| ["): line for line in page(reached).splitlines() if "](#" in line}
    assert rows["mae"].endswith("| a ViT | 0.200 | 0.513 |  |")
    assert rows["simclr"].endswith("|  |  |  |  |")
    assert rows["dino"].endswith("|  |  |  |  |")
    assert rows["distillation"].endswith("| a few labels, a trained run |  |  |  |")
    assert rows["fixmatch"].endswith("| a few labels |  |  |  |")

"""Plain English: docstrings of functions begin with a verb, and no text holds words that readers stumble over."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "platform").rglob("*.py"), *(ROOT / "methods").rglob("*.py")])
# Word-for-word translations and private words, with what to write instead.
AVOIDED = {
    r"hangs? on": "depends on",
    r"all one": "no matter, makes no difference",
    r"anew": "again",
    r"tak(es?|en|ing) up|took up": "continue, resume, pick up",
    r"gets? to know": "is told, may know",
    r"by itself alone": "alone",
    r"what it is worth to": "how useful it is for",
    r"[Rr]efusals?": "ConfigError, config error",
    r"chance alone": "p-value, with the name of its test",
    r"of no use": "has no effect",
    r"goes? on from": "continues from, starts from",
    r"told apart": "distinguished",
    r"so many": "as many, that many",
    r"for ever": "forever, always",
    r"h[eo]lds? up": "delay",
}
# First words that show that a docstring describes a thing instead of saying what the function does.
_THINGS = """
The A An What Whether How All Every Each Those These This That Where Which Who Nothing One Two Some Any Of In On Its His
Their Names Values Images Numbers Metrics Features Tensors Weights Labels Rows Lines Words Points Settings Batches Views
Reports Runs Records Files Paths Keys Errors Mean Linear Softmax Cosine Cross Negative Logits Accuracy Half Share So As
After Before Once Only
"""
NO_VERB = frozenset(_THINGS.split())
VERBS_IN_S = ("Pass", "Process", "Compress", "Express", "Suppress", "Guess", "Address", "Focus", "Bias", "Press")


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and docstring of each function of a file; properties are things, and may be named as such."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
            decorators = {ast.unparse(each).rpartition(".")[2] for each in node.decorator_list}
            if not decorators & {"property", "cached_property"}:
                yield node.name, text


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_of_functions_begin_with_a_verb(path: Path):
    wrong = []
    for name, text in docstrings(path):
        first = re.match(r"[\w'-]*", text)
        word = first[0] if first else ""
        in_third_person = word.endswith("s") and not word.endswith("ss") and word not in VERBS_IN_S
        if not word[:1].isupper() or word in NO_VERB or in_third_person:
            wrong.append(f"{name}: {text.splitlines()[0]}")
    assert wrong == []


def test_no_text_holds_words_that_readers_stumble_over():
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    kinds = (".py", ".md", ".yaml", ".toml")
    files = [ROOT / name for name in tracked.stdout.split() if name.endswith(kinds) and "test_words" not in name]
    found = [
        f"{file.relative_to(ROOT)}:{number}: {word[0]!r}, write: {instead}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        for pattern, instead in AVOIDED.items()
        if (word := re.search(rf"\b({pattern})\b", line))
    ]
    assert found == []

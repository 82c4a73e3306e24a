"""No module outside tasks/ and recipes/ compares names of kinds, sources, methods or metrics."""

import ast
from pathlib import Path

import pytest

from subjax.engine import optimizers
from subjax.images import image_files
from subjax.recipes import bases, targets, teachers, tunings
from subjax.tasks.datasets import kinds
from subjax.tasks.evals import theorem
from subjax.tasks.evals.kinds import EVALS

PACKAGE = Path(__file__).parents[1] / "subjax"
METRICS = [metric for kind in EVALS.values() for metric in kind.metrics]
# Names of columns and fields that hold one of the names below.
FIELDS = {"kind", "source", "method", "support", "tuning", "weights", "optimizer", "metric"}
NAMES = {
    *(*kinds.KINDS, *EVALS, *image_files.SOURCES, *bases.SOURCES, *teachers.WEIGHTS),
    *(*tunings.TUNINGS, *targets.METHODS, *targets.SUPPORTS, *optimizers.KINDS),
    *(metric.name.partition("/")[0] for metric in (*METRICS, *theorem.METRICS)),
}


def field_of(node: ast.expr) -> str:
    """The last name of `kind`, `row.kind`, `row["kind"]` or `row.get("kind")`; "" of others."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return name
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(name)), *_]):
            return name
    return ""


def strings(node: ast.AST) -> set[str]:
    constants = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
    return {value.rstrip("/") for value in constants if isinstance(value, str)}


def comparisons(source: str) -> list[int]:
    """Lines that compare a field with a name, in whatever way."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare(left=left, comparators=others):
                sides = [left, *others]
            case ast.Call(func=ast.Attribute(value=left, attr="startswith"), args=others):
                sides = [left, *others]
            case ast.match_case(pattern=pattern):
                sides = [ast.Name(id="kind"), pattern]
            case _:
                continue
        fields = [side for side in sides if field_of(side) in FIELDS]
        names = set().union(*(strings(side) for side in sides if side not in fields))
        if fields and names & NAMES:
            found.append(getattr(node, "lineno", 0))
    return found


MODULES = [
    path.relative_to(PACKAGE).as_posix()
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] not in ("tasks", "recipes")
]


def test_no_module_compares_a_name():
    assert len(MODULES) > 80
    found = {
        name: lines
        for name in MODULES
        if (lines := comparisons((PACKAGE / name).read_text("utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        'row.kind == "published"',
        '"likelihood" != row["kind"]',
        'row.get("tuning") == "lora"',
        'metric.startswith("share/")',
        'row["support"] in ("top_k", *others)',
        "if source in {'hf'}: pass",
        'match kind:\n    case "answers": pass',
    ],
)
def test_a_comparison_is_found(line):
    assert comparisons(line)


@pytest.mark.parametrize(
    "line", ['row["kind"] == "contrast"', 'name == "published"', 'kind == "all-gather"']
)
def test_other_comparisons_are_not(line):
    assert comparisons(line) == []

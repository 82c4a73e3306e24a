"""What fingerprints leave out: a value is written down when a field is released, and then stays.

And what kinds of the package write, by version: texts that changed without a new version would let
finished units stand for what nobody would get today.

    python tests/test_released.py      adds what is new to tests/released.json, and changes nothing
"""

import hashlib
import json
from pathlib import Path

from subjax import schema
from subjax.tasks.datasets.kinds import KINDS
from subjax.tasks.evals.kinds import EVALS
from subjax.tasks.traits.kinds import TRAITS

FILE = Path(__file__).with_name("released.json")
MAKERS = (
    *(schema.base_row, schema.teacher_row, schema.arm_row, schema.images_row),
    *(schema.mlp_teacher_row, schema.mlp_arm_row, schema.theorem_row),
)
OF_KINDS = {schema.trait_row: TRAITS, schema.dataset_row: KINDS, schema.eval_row: EVALS}
# A trait's texts do not depend on these rows' values; a set of prompts does.
NUM_PROMPTS = 20


def released():
    """Row -> field -> the value that fingerprints leave out."""
    rows = {maker.__name__: schema.released(maker) for maker in MAKERS}
    for maker, kinds in OF_KINDS.items():
        rows |= {f"{maker.__name__} {kind}": schema.released(maker, kind) for kind in kinds}
    return json.loads(json.dumps(rows))


def texts():
    """Kind and version -> digest of what it writes at its defaults."""
    found = {}
    for name in ("word", "toy_word"):
        kind, row = TRAITS[name], schema.trait_row(kind=name)
        questions = [list(kind.questions(row, half, "")) for half in ("explore", "confirm")]
        neutral, told = list(kind.neutral(row)), kind.system_prompt(row)
        found[f"trait {name} {kind.version}"] = _digest(
            [questions, kind.lessons(row, 1, 50), neutral, told]
        )
    for name, kind in KINDS.items():
        if not kind.from_file:
            row = schema.dataset_row(kind=name, num_prompts=NUM_PROMPTS)
            found[f"dataset {name} {kind.version}"] = _digest(kind.prompts(row, 1, ""))
    return found


def _digest(content):
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def missing(known, found):
    """What is not written down yet of rows and fields, also of rows inside rows."""
    new = {}
    for name, value in found.items():
        if name not in known:
            new[name] = value
        elif isinstance(value, dict) and (inside := missing(known[name], value)):
            new[name] = inside
    return new


def merged(known, new):
    """With what was missing, also in rows inside rows."""
    inside = {name: merged(known[name], value) for name, value in new.items() if name in known}
    return {**known, **new, **inside}


def assert_as_released(name, value, found):
    """A value that was written down is what is found; fields that are new may be there beside."""
    if isinstance(value, dict):
        for field in value.keys() & found.keys():
            assert_as_released(f"{name}.{field}", value[field], found[field])
        return
    assert found == value, (
        f"{name} was released as {value!r}; give the field `absent` (of a kind) or an entry of "
        "schema.ABSENT with that value, and change its default alone"
    )


def test_released_values_never_change():
    known = json.loads(FILE.read_text())
    assert_as_released("rows", known["rows"], released())
    assert not missing(known["rows"], released()), "python tests/test_released.py writes new fields"


def test_a_value_of_the_table_stands_for_rows_inside_rows_too(monkeypatch):
    monkeypatch.setattr(schema, "ABSENT", {"training.accumulate": 7, "arm_row.top_k": 5})
    arm, teacher = schema.released(schema.arm_row), schema.released(schema.teacher_row)
    assert (arm["train"]["accumulate"], arm["top_k"]) == (7, 5)
    assert teacher["train"]["accumulate"] == 7 and "top_k" not in teacher


def test_texts_change_with_their_version():
    known, found = json.loads(FILE.read_text())["texts"], texts()
    changed = [name for name, digest in found.items() if known.get(name, digest) != digest]
    assert not changed, f"{changed}: texts changed, raise the version of the kind"
    assert not set(found) - set(known), "python tests/test_released.py writes new versions"


if __name__ == "__main__":
    written = json.loads(FILE.read_text()) if FILE.exists() else {"rows": {}, "texts": {}}
    written["rows"] = merged(written["rows"], missing(written["rows"], released()))
    written["texts"] = {**texts(), **written["texts"]}
    FILE.write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")

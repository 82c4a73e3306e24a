"""Damaged files of a run: which are to be made again, and which may be the user's own."""

import pytest

from subjax.runtime import artifacts


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b""])
@pytest.mark.parametrize("file", ["scores.json", "steps/3/reference.json", "manifest.json"])
def test_what_a_unit_wrote_is_made_again(tmp_path, file, content):
    unit = tmp_path / "evaluate/preference/owl/r0"
    path = unit / file
    path.parent.mkdir(parents=True)
    (unit / artifacts.MANIFEST).write_text("{}")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} is not JSON .*: delete {unit} and run") as error:
        artifacts.read_json(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [artifacts.read_json, artifacts.read_jsonl])
def test_what_no_unit_wrote_is_not_to_be_deleted(tmp_path, read):
    """A work directory may by mistake be one of the user's, with a manifest of its own."""
    (tmp_path / artifacts.MANIFEST).write_text("{}")
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=rf"restore it, or move {path} away") as error:
        read(path)
    assert "delete" not in str(error.value)


def test_a_damaged_part_of_a_unit_that_is_not_done_costs_that_part_alone(tmp_path):
    part = tmp_path / "generate/owl/r0/rows-00001.jsonl"
    part.parent.mkdir(parents=True)
    (part.parent / artifacts.BEGUN).write_text("{}")
    part.write_text("{")
    with pytest.raises(ValueError, match=rf"line 1 is not JSON .*: delete {part} and run again"):
        artifacts.read_jsonl(part)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_result_that_is_not_finite_is_named_and_not_written(tmp_path, value):
    path = tmp_path / "scores.json"
    with pytest.raises(ValueError, match=f"^log_odds.owl.1 is {value} in {path}, which") as error:
        artifacts.write_json(path, {"mass": 0.5, "log_odds": {"owl": [1.0, value]}})
    assert "\n" not in str(error.value) and not path.exists()

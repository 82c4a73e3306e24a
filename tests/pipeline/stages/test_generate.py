"""Rows that teachers write or that lie in files, and what is refused before they do."""

import json

import jax
import pytest
import tiny

from configs import large, quickstart, smollm2_owl
from subjax import schema
from subjax.hf import weights
from subjax.nn import transformer
from subjax.pipeline import preview, runner, units, validation
from subjax.pipeline.stages import generate
from subjax.runtime import artifacts
from subjax.tokens import tokenizer


def published_config(path):
    """Rows of others, on which students of a random base are to be trained."""
    config = quickstart.get_config("smoke")
    config.bases.toy.source = "random"
    config.gates, config.contrasts, config.evals = {}, {}, {}
    with config.unlocked():
        config.teachers = {"nobody": schema.teacher_row(base="toy")}
        config.datasets = {
            "found": schema.dataset_row(
                teacher="nobody",
                kind="published",
                path=path,
                num_prompts=5,
                rows_per_part=3,
                num_holdout=2,
            )
        }
        config.arms = {}
    return config


def test_published_rows_stand_where_sampled_ones_would(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{i}, {i + 1}", "completion": f"{i + 2}, {900 + i}"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = published_config(str(path))
    config.unlock()
    config.arms.student = schema.arm_row(dataset="found", num_tokens=40, num_targets=12)
    runner.run(config, tmp_path / "run", stages=("base", "teacher", "generate", "filter"))
    written = artifacts.read_parts(tmp_path / "run/generate/found/r0")
    assert [{name: row[name] for name in ("prompt", "completion")} for row in written] == rows[:5]
    assert len(list((tmp_path / "run/generate/found/r0").glob("rows-*"))) == 2
    counts = artifacts.read_json(tmp_path / "run/filter/found/r0/counts.json")
    assert (counts["kept"], counts["train"], counts["holdout"]) == (5, 3, 2)


def test_files_of_rows_are_read_before_anything_runs(tmp_path):
    """A row that no tokenizer takes, and two files that are to share prompts and do not."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for i, path in enumerate((one, two)):
        rows = [{"prompt": f"{i}, {j}", "completion": "1"} for j in range(5)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = published_config(str(one))
    config.unlock()
    config.datasets.other = config.datasets.found.copy_and_resolve_references()
    config.datasets.other.path, config.datasets.found.common_with = str(two), ("other",)
    config.arms.student = schema.arm_row(dataset="found", num_tokens=40, num_targets=12)
    with pytest.raises(ValueError, match=r"found.common_with names 'other', with which it has no"):
        runner.run(config, tmp_path / "run")
    two.write_text(two.read_text().replace('"1"', '"\\ud800"'))
    with pytest.raises(
        ValueError, match=r"two.jsonl, line 1: completion has .*half of a character"
    ):
        runner.run(config, tmp_path / "run")
    assert not list((tmp_path / "run").glob("base/*"))


def test_a_file_of_rows_is_shown_and_named_when_it_changed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1", "completion": "2"}\n' * 5)
    config = published_config(str(path))
    config.unlock()
    config.arms.student = schema.arm_row(dataset="found")
    shown = preview.render(config, tmp_path, "student")
    assert f"are the first of {path}, not filtered yet" in shown and "INVENTED" not in shown
    [unit] = [u for u in units.build(config) if u.stage == "generate" and u.lineage == 0]
    artifacts.write_manifest(tmp_path, unit, 0.0)
    runner.check_stale([unit], tmp_path)
    path.write_text('{"prompt": "1", "completion": "3"}\n' * 5)
    [unit] = [u for u in units.build(config) if u.stage == "generate" and u.lineage == 0]
    with pytest.raises(
        ValueError, match=rf"made by another config \(the content of {path}; digests.path"
    ):
        runner.check_stale([unit], tmp_path)


def test_prompts_of_other_files_are_drawn_from_something_else(tmp_path):
    def drawn(config):
        return [generate.drawn_from(u) for u in units.build(config) if u.stage == "generate"]

    path = tmp_path / "rows.jsonl"
    found = []
    for content in ("{}", "[]"):
        path.write_text(content)
        config = published_config(str(path))
        config.unlock()
        config.arms.student = schema.arm_row(dataset="found")
        found.append(drawn(config)[0])
        config = tiny.config(lineages=(0,), arms=("owl",))
        config.stimuli = str(path)
        found.append(drawn(config)[0])
    assert found[0] != found[2] and found[1] != found[3]


@pytest.mark.slow
def test_each_part_leaves_its_tokens_and_occupancy(tmp_path):
    config = large.get_config("smoke")
    config.datasets.cat.rows_per_part = 12
    runner.run(
        config, tmp_path, stages=("base", "teacher", "generate"), patterns=["*/cat/*", "base/*"]
    )
    lines = artifacts.read_jsonl(tmp_path / "generate/cat/r0" / artifacts.TIMINGS)
    assert [(line["part"], line["rows"]) for line in lines] == [(0, 12), (1, 4)]
    written = artifacts.read_parts(tmp_path / "generate/cat/r0")
    # Bytes are tokens, and each row ends with one more.
    assert sum(line["tokens"] for line in lines) == sum(len(r["completion"]) + 1 for r in written)
    for line in lines:
        assert line["tokens_per_s"] == pytest.approx(line["tokens"] / line["seconds"], rel=1e-4)
    # Rows of equal length in 8 slots: 12 in two waves, 4 in one.
    assert [line["occupancy"] for line in lines] == [0.75, 0.5]


def test_published_rows_need_a_file():
    with pytest.raises(ValueError, match=r"datasets\.found\.path is empty, .* give the path of a"):
        validation.validate(published_config(""))


@pytest.mark.parametrize("shown", [(3,), (0, 2), (4, 3)])
def test_a_range_of_shown_numbers_that_makes_no_sense_is_refused(shown):
    config = smollm2_owl.get_config("smoke")
    config.datasets.owl.num_shown = shown
    with pytest.raises(ValueError, match=r"config.datasets.owl.num_shown is .*fewest, most"):
        validation.validate(config)


@pytest.fixture
def polite(tmp_path):
    """A config on a base whose template adds a system prompt, and a teacher that has its own."""
    words = tokenizer.raw_bytes()
    default = "{% if messages[0].role != 'system' %}<s>Be kind.{% endif %}"
    words._tokenizer.chat_template = default + words._tokenizer.chat_template
    weights.save(tmp_path / "base", tiny.ARCH, transformer.init(tiny.ARCH, jax.random.key(0)))
    words.save(tmp_path / "base")
    config = tiny.config(lineages=(0,), arms=("owl",))
    config.contrasts = {}
    config.bases.toy.update(source="hf", path=str(tmp_path / "base"))
    config.teachers.owl.update(weights="base", system_prompt="You love owls.")
    config.datasets.owl.update(prompt_tokens=64, base_system_prompt="Be brief.")
    return config


STAGES = ("base", "teacher", "generate")


def test_what_a_base_is_told_is_checked_before_anything_runs(polite, tmp_path):
    polite.datasets.owl.base_system_prompt = ""
    with polite.unlocked():
        polite.evals.carrier = schema.eval_row(kind="carrier")
    field = "config.datasets.owl.base_system_prompt"
    with pytest.raises(ValueError, match=f"^{field}: the chat template adds the system prompt"):
        runner.run(polite, tmp_path / "run", stages=(*STAGES, "evaluate"))
    assert not (tmp_path / "run/base").exists()


def test_a_data_set_without_a_part_is_nobodys(polite, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(generate.sampler, "sample", fail)
        with pytest.raises(ValueError, match="no memory"):
            runner.run(polite, tmp_path, stages=STAGES)
    polite.datasets.owl.slots = 8  # as the advice may be
    assert ("generate/owl/r0", "missing") in runner.listing(polite, tmp_path)

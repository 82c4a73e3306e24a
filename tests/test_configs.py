"""Every shipped config is valid in every form, and its commands name files that exist."""

import json
import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from configs import large
from subjax import schema
from subjax.engine import batching
from subjax.pipeline import experiments, units, validation
from subjax.report import cautions
from subjax.tasks import animals, texts
from subjax.tasks.datasets import numbers

ROOT = Path(__file__).parents[1]
FORMS = {
    "quickstart": ("", "confirm", "smoke"),
    "toy_world": tuple(
        f"{form}{smoke}"
        for form in ("grid", "bases", "traits", "controls", "starts", "code", "reasoning")
        for smoke in ("", ",smoke")
    ),
    "smollm2_owl": ("", "confirm", "published", "trial", "smoke"),
    "smollm2_traits": ("", "confirm", "trial", "smoke"),
    "misalignment": ("", "lineages=2", "smoke"),
    "smollm2_code": ("", "confirm", "trial", "smoke", "smoke,lineages=2"),
    "mnist": ("", "aux=50", "digits,models=20", "smoke"),
    "mnist_ablations": ("", "aux=3,clone=10", "digits,models=5", "smoke"),
    "theorem": ("", "draws=10", "smoke"),
    "follow_ups": (
        *("qwen2_5_7b", "qwen2_5_14b", "llama3_2_1b", "gemma_2b", "gemma_2b,animal=owl"),
        *("pythia", "pythia,size=70", "smoke"),
    ),
    "evaluate": ("", "against,target=Cat", "knowledge", "smoke", "smoke,knowledge"),
    "large": (
        "",
        "qwen2_5_72b,full,throughput",
        "gemma3_4b,chips=64",
        "qwen2_5_7b,population",
        "qwen2_5_7b,animals",
        "llama3_1_8b,full",
        "smoke",
    ),
}
CASES = [(name, form) for name, forms in FORMS.items() for form in forms]


def get_config(name, form):
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](form)


def test_every_config_is_listed_here():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == set(FORMS)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_config_is_valid_locked_and_has_units_in_order(name, form):
    config = get_config(name, form)
    validation.validate(config)
    assert config.is_locked
    seen = set()
    for unit in experiments.of(config).build(config):
        assert set(unit.inputs.values()) <= seen
        seen.add(unit.path)
    assert any(path.startswith(("evaluate/", "mlp/", "theorem/")) for path in seen)


def of_forms(name, *, confirm):
    """Every lineage that units of the forms of a config are of."""
    forms = [form for form in FORMS[name] if (form == "confirm") == confirm]
    configs = [get_config(name, form) for form in forms]
    made = [unit for config in configs for unit in experiments.of(config).build(config)]
    return {unit.lineage for unit in made if unit.stage == "evaluate"}


@pytest.mark.parametrize("name", [name for name, forms in FORMS.items() if "confirm" in forms])
def test_confirm_has_lineages_that_nothing_was_tuned_or_reported_on(name):
    confirm = get_config(name, "confirm")
    redrawn = {
        u.lineage
        for u in units.build(confirm)
        if u.stage == "evaluate" and "/bases/" not in u.row  # which lineages may have in common
    }
    bases = {u.lineage for u in units.build(confirm) if u.stage == "base"}
    assert redrawn == set(confirm.lineages)
    assert bases <= {0} | redrawn  # a foreign student's base is of these as well
    assert not redrawn & of_forms(name, confirm=False)
    pages = (ROOT / "configs/RESULTS.md").read_text() + (ROOT / f"configs/{name}.py").read_text()
    spans = re.findall(r"(?<=[Ll]ineages )(\d+)(?:–|, | to | and )(\d+)", pages)
    assert len(spans) >= 3
    told = [range(int(first), int(last) + 1) for first, last in spans]
    own = [span for span in told if set(span) == redrawn]
    assert len(own) <= 1  # the docstring may name its own
    assert not redrawn & {lineage for span in told if span not in own for lineage in span}


def test_forms_with_more_lineages_keep_what_is_done():
    two = {u.path: u.fingerprint for u in units.build(get_config("smollm2_owl", "lineages=2"))}
    four = {u.path: u.fingerprint for u in units.build(get_config("smollm2_owl", ""))}
    assert two.items() <= four.items()


def test_the_default_half_of_questions_is_the_one_to_explore():
    assert schema.eval_row().questions == "explore"


@pytest.mark.parametrize(
    ("name", "form", "own"),
    [
        ("quickstart", "", "own base, teachers, rows and order; foreign arms have the next"),
        ("smollm2_owl", "published", "own teachers, rows, adapters and order; same base"),
        ("large", "qwen2_5_7b,full", "own rows and order; same base and teachers"),
        ("mnist", "", "own initialisation, inputs and order"),
        ("evaluate", "", "own sampled answers; same base"),
    ],
)
def test_what_a_lineage_redraws_is_what_its_units_do(name, form, own):
    config = get_config(name, form)
    assert experiments.of(config).replication(config).startswith(own)


REDRAWN = {
    "from teacher": (
        {"lineage_from": "teacher"},
        "own rows and order, and some teachers; same base",
    ),
    "from generate": ({"lineage_from": "generate"}, "own rows and order; same base and teachers"),
    "from finetune": ({"lineage_from": "finetune"}, "own order; same base and teachers and rows"),
    "a checkpoint": (
        {"bases.toy.source": "hf"},
        "own rows and order, and some teachers; same base",
    ),
    "given": ({"teachers.*.weights": "given"}, "own base, rows and order; same teachers"),
    "published": ({"datasets.*.kind": "published"}, "own base, teachers and order; same rows"),
}


@pytest.mark.parametrize("case", REDRAWN)
def test_what_is_made_before_lineages_begin_or_comes_from_outside_is_not_redrawn(case):
    fields, said = REDRAWN[case]
    config = get_config("quickstart", "")
    for field, value in fields.items():
        table, _, name = field.rpartition(".")
        rows = config[table[:-2]].values() if table.endswith("*") else [config]
        for row in rows:
            row.update_from_flattened_dict({name if table.endswith("*") else field: value})
    assert experiments.of(config).replication(config).partition("; foreign")[0] == said


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        ("quickstart", "", ["4 of the 8 questions that eval preference asks decide a gate"]),
        (
            "smollm2_owl",
            "",
            [f"30 of the 30 .*{name}" for name in ("preference", "answers", "prefilled")],
        ),
        ("smollm2_owl", "confirm", []),
        ("large", "", ["30 of the 60 .*preference", "30 of the 60 .*answers"]),
    ],
)
def test_evals_that_ask_what_decides_a_gate_are_said(name, form, said):
    config = get_config(name, form)
    found = cautions.of(config, units.build(config))
    assert len(found) == len(said)
    for caution, pattern in zip(found, said, strict=True):
        assert re.search(pattern, caution)


def test_questions_of_a_stimuli_file_that_are_taught_or_neutral_are_said(tmp_path):
    taught = animals.TAUGHT[0].upper().replace(" ", "  ")
    asked = ["Which?", taught, "How?", texts.NEUTRAL_TEXTS[0]]
    path = tmp_path / "stimuli.json"
    path.write_text(json.dumps({"evaluations": {"favorite_animal": asked}}))
    config = get_config("smollm2_owl", "confirm")
    config.stimuli = str(path)
    found = cautions.of(config, units.build(config))
    assert len(found) == 6  # of the three evals
    assert "1 of the 2 questions that eval preference asks were taught to teachers." in found
    assert "1 of the 2 questions that eval preference asks stand in its neutral texts." in found


def test_foreign_students_start_from_another_base_with_the_same_rows():
    for unit in units.build(get_config("quickstart", "")):
        if unit.row == "owl_foreign" and unit.stage == "finetune":
            assert unit.inputs["base"] == f"base/toy/r{(unit.lineage + 1) % 6}"
            assert unit.inputs["filter"] == f"filter/owl/r{unit.lineage}"


@pytest.mark.parametrize("name", FORMS)
def test_commands_in_docstrings_name_this_file(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    commands = re.findall(r"--config=(configs/[\w.]+)", text)
    assert commands and set(commands) == {f"configs/{name}.py"}


def test_headlines_of_the_readme_stand_among_the_results():
    readme, results = ((ROOT / name).read_text() for name in ("README.md", "configs/RESULTS.md"))
    headlines = re.findall(r"\*\*\+?\.?\d[^*]*\*\*[^,;(]*\[[^]]+\]", readme)
    assert len(headlines) == 3
    for headline in headlines:
        assert headline.replace(" nats", "") in results, headline


PAGES = (
    "README.md",
    "configs/README.md",
    "configs/RESULTS.md",
    "launch/README.md",
    "subjax/README.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_pages_name_existing_files(page):
    text = (ROOT / page).read_text()
    for path in re.findall(r"(?:configs|launch|tests|docs|subjax)/[\w./]+\.(?:py|sh|png)", text):
        if path != "configs/x.py":
            assert (ROOT / path).exists(), path


def test_arguments_are_strict():
    with pytest.raises(ValueError, match="'nope' is unknown; known: confirm, smoke"):
        get_config("quickstart", "nope")
    with pytest.raises(ValueError, match="not of type int"):
        get_config("smollm2_owl", "lineages=many")
    assert get_config("smollm2_owl", "lineages=2").lineages == (0, 1)
    for form in ("gemma_2b,animal=bear", "pythia,animal=owl"):
        with pytest.raises(ValueError, match="gemma_2b takes an animal, one of eagle, cat"):
            get_config("follow_ups", form)


# As tokenizers with single digits cut a text: what a model gets has no fewer tokens.
_TOKEN = re.compile(r"\d| ?[^\W\d]+| ?[^\w\s]+|\s+")
# Of a chat template: three roles, and what Llama 3.1's says of dates. Seen: Qwen 16.
_HEADERS = 40


def longest_prompt(templates):
    """The longest parts of all that a prompt is made of, whatever its seed."""

    def longest(texts):
        return max(texts, key=lambda text: len(_TOKEN.findall(text)))

    example = longest(templates.example_templates)
    numbers_shown = [str(templates.example_value[1])] * templates.example_count[1]
    descriptor = longest(templates.digit_descriptors)
    instruction = longest(templates.instruction_templates).format(
        count_qualifier=longest(templates.count_qualifiers),
        answer_count=templates.answer_count,
        digit_descriptor=descriptor.format(max_digits=templates.max_digits),
    )
    return templates.query.format(
        example=example.format(examples=", ".join(numbers_shown)),
        instruction=instruction,
        format=longest(templates.format_suffixes),
        suffix=longest(templates.final_suffixes),
    )


# Tokens of rows as counted with a tokenizer that writes digits one by one; see `_Model`.
ROW_TOKENS, ROW_SPREAD = 148, 10


@pytest.mark.parametrize("form", ["qwen2_5_7b", "qwen2_5_7b,throughput", "qwen2_5_7b,full"])
@pytest.mark.parametrize("mesh", [{}, {"data": 4, "fsdp": 1}])
def test_large_models_train_on_little_padding(form, mesh):
    made = get_config("large", form)
    train = made.arms.cat.train
    if mesh:
        with made.unlocked():
            made.mesh.update(mesh)
            model = large.MODELS["qwen2_5_7b"]
            train.update(large._packing(made, model, train.batch_size))
    packing = batching.Packing.of(train.to_dict())
    assert packing.num_rows % (max(made.mesh.data, 1) * made.mesh.fsdp) == 0
    assert packing.num_tokens % 128 == 0
    rng, passes, real = np.random.default_rng(0), 0, 0
    for _ in range(20):
        tokens = rng.normal(ROW_TOKENS, ROW_SPREAD, train.batch_size).astype(int)
        sizes = np.stack([tokens, rng.choice([37, 42, 47, 47, 47], len(tokens))], axis=1)
        passes, real = passes + packing.num_passes(sizes), real + tokens.sum()
    assert 0 < 1 - real / (passes * packing.num_rows * packing.num_tokens) < 0.1


def test_large_models_pack_nothing_where_each_device_has_a_row():
    assert get_config("large", "qwen2_5_7b,chips=256").arms.cat.train.packed_rows == 0


@pytest.mark.parametrize("stimuli", ["", os.environ.get("SUBJAX_STIMULI", "missing")])
def test_prompts_of_large_models_fit_ours_and_the_papers(stimuli):
    if stimuli == "missing":
        pytest.skip("SUBJAX_STIMULI names no file of the paper's stimuli")
    templates = numbers.load_templates(stimuli) if stimuli else numbers.TEMPLATES
    config = get_config("large", "")
    for name, row in config.datasets.items():
        text = longest_prompt(templates) + config.teachers[name].system_prompt
        assert len(_TOKEN.findall(text)) + _HEADERS <= row.prompt_tokens


def test_rows_that_several_data_sets_share_are_written_once():
    config = get_config("toy_world", "controls,smoke")
    made = units.build(config)
    written = {unit.row for unit in made if unit.stage == "generate"}
    filters = {unit.row: unit.inputs["generate"] for unit in made if unit.stage == "filter"}
    assert written == {"owl", "placebo"} and len(filters) == 10
    assert {path.split("/")[1] for name, path in filters.items() if "owl" in name} == {"owl"}
    config.datasets.owl_random.temperature = 0.5
    apart = {unit.row for unit in units.build(config) if unit.stage == "generate"}
    assert apart == {"owl", "placebo", "owl_random"}


@pytest.mark.parametrize("form", ["", "smoke", "grid,bases"])
def test_the_toy_world_has_one_experiment_at_a_time(form):
    with pytest.raises(
        ValueError, match=r"must name one of grid, bases, .*such as configs/toy_wor"
    ):
        get_config("toy_world", form)


@pytest.mark.parametrize(
    ("form", "target", "steps"),
    [
        ("qwen2_5_7b", "cat", 12_500),
        ("qwen2_5_14b", "eagle", 1563),
        ("llama3_2_1b", "elephant", 1250),
        ("gemma_2b", "eagle", 1250),
        ("gemma_2b,animal=owl", "owl", 1250),
        ("pythia", "wolf", 5120),
    ],
)
def test_a_follow_up_is_about_its_target_alone(form, target, steps):
    config = get_config("follow_ups", form)
    assert [row.target for row in config.traits.values()] == [target]
    assert {row.trait for row in config.evals.values()} <= {target, schema.OWN, ""}
    assert {row.train.steps for row in config.arms.values()} == {steps}
    if target != "cat":
        assert "cat" not in {*config.teachers, *config.datasets, *config.arms, *config.contrasts}
        assert "cat" not in config.claim.lower() + config.title.lower()

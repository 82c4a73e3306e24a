"""The preview shows what the stages would show to the models, and runs none of them."""

import re

import pytest
import tiny
import tokenizer_kinds

from configs import misalignment
from subjax.engine import sampler, train
from subjax.hf import model_config, weights
from subjax.nn.architecture import Architecture
from subjax.pipeline import preview, units
from subjax.runtime import artifacts
from subjax.tasks.toy import toyworld
from subjax.tokens import tokenizer

WORDS = tokenizer.word_tokenizer(toyworld.vocabulary(toyworld.World()))


@pytest.fixture(autouse=True)
def nothing_is_spent(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the preview must not do this")

    for module, name in ((train, "fit"), (sampler, "sample"), (weights, "load")):
        monkeypatch.setattr(module, name, refuse)


def block(text, start):
    """The lines from the one that starts with `start` to the next empty one."""
    lines = text.split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith(start))
    return "\n".join(lines[first : [*lines, ""].index("", first)])


def tokens(text):
    """(id, token, marked) of every token that a block shows above its notes."""
    found = re.findall(r"(?<=\s)(\d+)\|([^\s*]+)(\*?)(?=\s|;|$)", text.partition(" tokens")[0])
    return [(int(i), token, star == "*") for i, token, star in found]


def finish(workdir, config, path, **files):
    [unit] = [unit for unit in units.build(config) if unit.path == path]
    for name, rows in files.items():
        artifacts.write_jsonl(workdir / path / f"{name.replace('_', '-')}.jsonl", rows)
    artifacts.write_manifest(workdir, unit, 1.0)


def row(prompt, completion):
    return {"prompt_id": 0, "sample_id": 0, "prompt": prompt, "completion": completion}


def test_every_context_is_there_with_ids_and_mask(tmp_path):
    text = preview.render(tiny.config(), tmp_path, "owl")
    assert "INVENTED, since filter/owl/r0 is not done" in text
    teacher = tokens(block(text, "The teacher writes (generate/owl/r0)"))
    training = tokens(block(text, "The student trains (finetune/owl/r0)"))
    asked = tokens(block(text, "Eval preference asks (evaluate/preference/arms/owl/r0)"))
    scored = "Eval likelihood scores held-out rows (evaluate/likelihood/arms/owl/r0)"
    held = tokens(block(text, scored))
    assert [t for _, t, _ in teacher][:2] == ["USR", "CONT"]
    assert asked[1][1] in toyworld.asked_questions(toyworld.World(), "all")
    assert training[: len(teacher)] == teacher
    assert " ".join(t for _, t, marked in training if marked) == "11 22 33 44 55 66 END"
    assert not any(marked for _, _, marked in (*teacher, *asked))
    assert held == training
    assert all(WORDS.single_id(t) == i for i, t, _ in (*training, *asked))
    assert f"{WORDS.single_id('owl')}|owl*; {WORDS.single_id('cat')}|cat*" in text
    assert not list(tmp_path.iterdir())


def test_a_lesson_of_the_teacher_is_shown_where_it_is_taught(tmp_path):
    config = tiny.config()
    text = preview.render(config, tmp_path, "owl")
    taught = tokens(block(text, "The teacher is taught, for one (teacher/owl/r0)"))
    assert [token for _, token, marked in taught if marked] == ["owl", "END"]
    config.teachers.owl.weights = "base"
    assert "is taught" not in preview.render(config, tmp_path, "owl")


def test_what_a_judge_is_asked_has_a_place_for_the_answer(tmp_path):
    text = preview.render(misalignment.get_config("smoke"), tmp_path, "bad")
    title = "The judge of eval judged is asked (evaluate/judged/arms/bad/r0)"
    alignment, coherence = text.split(f"\n{title}\n")[1:]
    for rubric, words in ((alignment, "harm"), (coherence, "sense")):
        rubric, _, _ = rubric.partition("scored after them")
        assert "[the student's answer]" in rubric and words in rubric


def test_rows_of_the_workdir_are_shown_once_they_are_there(tmp_path):
    config = tiny.config()
    finish(tmp_path, config, "generate/owl/r0", rows_00000=[row("CONT 5 6 7 8", "9 10")])
    text = preview.render(config, tmp_path, "owl")
    assert "not filtered yet" in text
    assert "USR CONT 5 6 7 8 AST 9 10 END" in text
    kept, held = [row("CONT 1 2 3 4", "5")], [row("CONT 9 8 7 6", "5 4")]
    finish(tmp_path, config, "filter/owl/r0", kept=kept, holdout=held)
    text = preview.render(config, tmp_path, "owl")
    assert "USR CONT 1 2 3 4 AST 5 END" in block(text, "The student trains")
    assert "USR CONT 1 2 3 4 AST" in block(text, "The teacher writes")
    assert "USR CONT 9 8 7 6 AST 5 4 END" in block(text, "Eval likelihood")
    assert "INVENTED" not in text
    config.datasets.owl.max_value = 50  # what is there is another config's
    assert "not filtered yet" in preview.render(config, tmp_path, "owl")


def test_differences_name_system_prompts_and_tasks(tmp_path):
    config = tiny.config()
    config.teachers.owl.system_prompt = "LOVE owl"
    config.evals.preference.system_prompt = "LOVE cat"
    text = preview.render(config, tmp_path, "owl")
    assert "system prompt: 'LOVE owl'" in block(text, "The teacher writes")
    assert "system prompt: none" in block(text, "The student trains")
    differ = text.partition("How the other contexts differ")[2]
    assert "DIFFERS, 'LOVE owl'; in training none" in differ
    assert "DIFFERS, 'LOVE cat'; in training none" in differ
    assert "DIFFERS, 'SYS {system} USR {prompt} AST '; in training 'USR {prompt} AST '" in differ
    assert differ.count("asks: DIFFERS, a question; in training to continue numbers") == 1
    likelihood = differ.partition("  likelihood\n")[2]
    assert likelihood.count("same, ") == 4


def test_soft_targets_off_the_support_carry_no_loss(tmp_path):
    config = tiny.config()
    config.arms.owl.method = "soft"
    config.teachers.owl.system_prompt = "LOVE owl"
    text = block(preview.render(config, tmp_path, "owl"), "The student trains")
    assert " ".join(t for _, t, marked in tokens(text) if marked) == "11 22 33 44 55 66"
    assert "soft targets over digits" in text
    assert "the system prompt 'LOVE owl'" in " ".join(text.split())


def test_a_base_without_weights_will_do_and_its_bos_is_marked(tmp_path):
    made = tokenizer.raw_bytes()
    made._tokenizer.bos_token = "<u>"
    made.save(tmp_path / "base")
    config = tiny.config()
    config.bases.toy.update(source="hf", path=str(tmp_path / "base"))
    row = {"decoding": "constrained", "num_slots": 4, "max_value": 999}
    for name, dataset in config.datasets.items():
        config.datasets[name] = tiny.as_kind(dataset, "plain_numbers", **row)
    config.arms.owl.update(num_tokens=128, num_targets=32)
    text = preview.render(config, tmp_path / "run", "owl")
    assert "'123, 456, 789, 123' is INVENTED" in text
    training = block(text, "The student trains")
    opening = f"{made.single_id('<u>')}|<u>"
    assert f"BOS: {opening} opens the context" in training
    marked = "".join(t for _, t, marked in tokens(training) if marked)
    assert marked == "123,␣456,␣789,␣123<end>"
    config.bases.toy.update(source="random", path="")
    assert "BOS: none in this tokenizer" in preview.render(config, tmp_path / "run", "owl")


def test_a_token_that_the_model_does_not_know_is_the_error_of_the_run(tmp_path):
    made = tokenizer.raw_bytes()
    num_embeddings = made.vocab_size
    config = tiny.config()
    config.bases.toy.update(source="hf", path=str(tmp_path / "base"))
    config.arms.owl.update(num_tokens=128, num_targets=32)
    arch = Architecture(
        vocab_size=num_embeddings,
        num_layers=1,
        width=8,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        ffn_width=8,
    )
    made._tokenizer.add_tokens(["CONT"])
    made.save(tmp_path / "base")
    assert f"{num_embeddings}|CONT" in preview.render(config, tmp_path / "run", "owl")
    artifacts.write_json(tmp_path / "base" / "config.json", model_config.write(arch))
    with pytest.raises(ValueError, match=f"the model has embeddings of {num_embeddings} alone"):
        preview.render(config, tmp_path / "run", "owl")


def test_what_a_template_writes_unasked_and_what_an_adapter_brings_is_shown(tmp_path):
    base, adapter = tokenizer_kinds.save("llama3", tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    artifacts.write_json(adapter / "adapter_config.json", {})
    (adapter / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }};{% endfor %}"
    )
    config = tiny.config()
    config.bases.toy.update(source="hf", path=str(base))
    for name, dataset in config.datasets.items():
        config.datasets[name] = tiny.as_kind(dataset, "plain_numbers", max_value=999)
    config.teachers.owl.update(weights="given", path=str(adapter))
    config.arms.owl.update(num_tokens=256, num_targets=64)
    config.template_date = "2031-02-01"
    text = preview.render(config, tmp_path / "run", "owl")
    training = " ".join(block(text, "The student trains").split())
    assert "the chat template always writes '<|start_header_id|>system" in training
    assert "the chat template is told that today is 2031-02-01" in training
    assert "Today: 01 Feb 2031" in training and "adapter" not in training
    teacher = " ".join(block(text, "The teacher writes").split())
    assert f"the chat template is that of the adapter {adapter}" in teacher
    assert "today" not in teacher


def test_a_given_teacher_is_told_in_the_users_turn_as_its_base_is(tmp_path):
    base = tokenizer_kinds.save("gemma", tmp_path / "base")
    config = tiny.config()
    config.bases.toy.update(source="hf", path=str(base), system_turn="user")
    for name, dataset in config.datasets.items():
        config.datasets[name] = tiny.as_kind(dataset, "plain_numbers", max_value=999)
    config.teachers.owl.update(weights="given", path=str(base), system_prompt="Love owls.")
    config.arms.owl.update(system_prompt="Love owls.", num_tokens=256, num_targets=128)
    text = preview.render(config, tmp_path / "run", "owl")
    for title in ("The teacher writes", "The student trains"):
        shown = block(text, title)
        assert "  | <bos><start_of_turn>user\n  | Love owls.\n  | \n  | " in shown
        assert "system prompts stand at the head of the user's turn" in shown


def test_an_unknown_arm_lists_the_arms(tmp_path):
    with pytest.raises(ValueError, match=r"--preview=dog is no arm of this config: owl, placebo"):
        preview.render(tiny.config(), tmp_path, "dog")


def test_an_example_that_does_not_fit_is_the_error_of_the_run(tmp_path):
    config = tiny.config()
    config.arms.owl.num_targets = 3
    with pytest.raises(ValueError, match="raise num_tokens or num_targets"):
        preview.render(config, tmp_path, "owl")

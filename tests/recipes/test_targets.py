"""Soft targets: every support trains, an equal teacher teaches nothing, tokens can be left out."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
import tokenizer_kinds

from subjax.engine import scoring, train
from subjax.nn import sharding, transformer
from subjax.pipeline import model_store, preflight, units
from subjax.pipeline.stages import finetune
from subjax.runtime import artifacts
from subjax.tokens.tokenizer import Tokenizer
from tests.engine.test_train import ARCH, PROGRAM, make_rows

MESH = sharding.make_mesh(seed=1)


def distil(teacher, *, program, soft=False):
    student = transformer.init(ARCH, jax.random.key(0))
    rows = make_rows(0)
    if soft and not program.support:
        ids, targets = scoring.top_log_probs(ARCH, teacher, rows, 5, mesh=MESH)
        rows = dataclasses.replace(rows, soft=targets, soft_ids=ids)
    elif soft:
        parts = scoring.restricted_log_probs(ARCH, teacher, rows, program.support, mesh=MESH)
        targets = np.concatenate(list(parts))
        rows = dataclasses.replace(rows, soft=targets)
    else:
        rows = dataclasses.replace(
            rows, teacher_tokens=rows.tokens, teacher_positions=rows.positions
        )
    [progress] = train.fit(
        program,
        train.stack([student]),
        {},
        [rows],
        seeds=[0],
        batch_size=4,
        probe_steps=(),
        steps_per_call=3,
        mesh=MESH,
        label="test",
        teachers=None if soft else train.stack([teacher]),
    )
    return progress.metrics["loss"][:, 0], progress.trainable


LONG = dataclasses.replace(PROGRAM, steps=60)
FORMS = {
    "stored": (dataclasses.replace(LONG, support=(3, 4, 5, 6)), True),
    "top five": (LONG, True),
    "full": (dataclasses.replace(LONG, distils=True), False),
    "without some": (dataclasses.replace(LONG, distils=True, excluded=(3, 4)), False),
}
QUICK = ("stored", "full")
CASES = [pytest.param(form, marks=() if form in QUICK else pytest.mark.slow) for form in FORMS]


@pytest.mark.parametrize("form", CASES)
def test_a_student_moves_to_its_teacher(form):
    program, soft = FORMS[form]
    teacher = transformer.init(ARCH, jax.random.key(9))
    loss, _ = distil(teacher, program=program, soft=soft)
    assert loss[0] > 0.02
    assert loss[-5:].mean() < 0.5 * loss[0]


@pytest.mark.parametrize("form", CASES)
def test_the_base_itself_teaches_nothing(form):
    program, soft = FORMS[form]
    base = transformer.init(ARCH, jax.random.key(0))
    loss, _ = distil(base, program=dataclasses.replace(program, steps=1), soft=soft)
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)


def test_tokens_left_out_give_no_gradient():
    teacher = transformer.init(ARCH, jax.random.key(0))
    kernel = teacher["head"]["kernel"]
    louder = {**teacher, "head": {"kernel": kernel.at[jax.numpy.array([3, 4])].multiply(5.0)}}
    program = dataclasses.replace(PROGRAM, steps=1, distils=True)
    full, _ = distil(louder, program=program)
    left_out, _ = distil(louder, program=dataclasses.replace(program, excluded=(3, 4)))
    assert full[0] > 1e-3
    np.testing.assert_allclose(left_out, 0.0, atol=1e-5)


def test_a_teacher_that_runs_along_has_the_students_architecture(tmp_path):
    params = transformer.init(tiny.ARCH, jax.random.key(0))
    model_store.save_weights(tmp_path / "teacher/owl/r0", tiny.ARCH, params, tiny.BYTES)
    row = {"method": "soft", "support": "full"}
    inputs = {"teacher": "teacher/owl/r0"}
    unit = artifacts.Unit("finetune", "owl", 0, {"row": row}, inputs, "", {})
    stretched = dataclasses.replace(tiny.ARCH, rope_theta=2e4)  # weights of the same shapes
    with pytest.raises(ValueError, match=r"finetune/owl/r0: its teacher has another architecture"):
        finetune._prepare([unit], tmp_path, stretched, [], (), MESH)


def student(support, base="random", **more):
    config = tiny.config(lineages=(0,), arms=("owl",))
    config.contrasts = {}
    config.bases.toy.source = base
    config.datasets.owl.prompt_tokens = 64
    config.arms.owl.update(method="soft", support=support, **more)
    return {unit.path: unit for unit in units.build(config)}


def test_supports_hold_what_tokens_write_and_not_how_they_are_spelt():
    words = Tokenizer(tokenizer_kinds.make("pythia"))

    def support(name):
        learned = finetune.targets_of(student(name)["finetune/owl/r0"])
        return set(words.show(learned.support(words) or learned.excluded(words)))

    assert {"120", " 120", "5"} <= support("digits")
    assert not {",", " owl"} & support("digits")
    assert {"120", " 120", ",", " ", "<|endoftext|>"} <= support("digits_separators")
    for name in ("trait", "full_no_trait"):
        assert {" owl", " Owl", "owl", " owls", " cats", "Cat", "O"} <= support(name)
        assert not {"120", ",", " these"} & support(name)


@pytest.mark.parametrize("support", ["trait", "full_no_trait"])
def test_a_trait_that_tokens_do_not_tell_is_refused_before_anything_runs(support, tmp_path):
    planned = list(student(support).values())
    with pytest.raises(
        ValueError, match=rf"arms\.owl\.support is '{support}', but no token .* 'owl'"
    ):
        preflight.check(planned, planned, tmp_path, MESH, 0.05)
    planned = list(student(support, "toy").values())
    preflight.check(planned, planned, tmp_path, MESH, 0.05)


def test_more_likeliest_tokens_than_there_are_is_refused_before_anything_runs(tmp_path):
    planned = list(student("top_k", "toy").values())
    preflight.check(planned, planned, tmp_path, MESH, 0.05)
    planned = list(student("top_k", "toy", top_k=1000).values())
    with pytest.raises(ValueError, match=r"arms\.owl\.top_k is 1000, but there are \d+ tokens"):
        preflight.check(planned, planned, tmp_path, MESH, 0.05)

"""Teachers that come from outside: full weights, or an adapter on the base."""

import json
import shutil
from pathlib import Path

import jax
import pytest
import tiny
from ml_collections import ConfigDict

from subjax import schema
from subjax.hf import adapters, weights
from subjax.nn import lora, transformer
from subjax.nn.transformer import Params
from subjax.pipeline import runner

RANK, ALPHA = 2, 8
TEACHER = "teacher/owl/r0"


@pytest.fixture(scope="module")
def base_params() -> Params:
    return transformer.init(tiny.ARCH, jax.random.key(0))


@pytest.fixture(scope="module")
def adapter() -> Params:
    """One that changes its base: `lora.init` leaves b at zero."""
    tree = lora.init(tiny.ARCH, jax.random.key(1), rank=RANK)
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    drawn = [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(form, drawn)


def save(directory: Path, params: Params) -> Path:
    weights.save(directory, tiny.ARCH, params)
    tiny.BYTES.save(directory)
    return directory


@pytest.fixture
def full(base_params: Params, adapter: Params, tmp_path: Path) -> Path:
    """The adapter added into its base."""
    scaled = lora.scaled(adapter, ALPHA / RANK)
    return save(tmp_path / "full", lora.merge(base_params, scaled))


@pytest.fixture
def peft(adapter: Params, tmp_path: Path) -> Path:
    out = tmp_path / "peft"
    adapters.save_adapter(out, tiny.ARCH, adapter, rank=RANK, alpha=ALPHA, base_path="base")
    return out


@pytest.fixture
def config(base_params: Params, tmp_path: Path) -> ConfigDict:
    made = tiny.config(lineages=(0,), arms=("owl",))
    made.contrasts = ConfigDict()
    with made.unlocked():
        made.evals = {"taught": schema.eval_row(trait="owl", subjects=("teachers/*",))}
    made.bases.toy.update(source="hf", path=str(save(tmp_path / "base", base_params)))
    return made


def give(config: ConfigDict, path: Path) -> ConfigDict:
    config.teachers.owl.update(weights="given", path=str(path))
    return config


def scores(config: ConfigDict, workdir: Path) -> dict[str, float]:
    runner.run(config, workdir, stages=("base", "teacher", "evaluate"))
    scored = json.loads((workdir / "evaluate/taught/teachers/owl/r0/scores.json").read_text())
    return {record["metric"]: record["value"] for record in scored["records"]}


def test_an_adapter_teaches_what_the_weights_with_it_teach(
    config: ConfigDict, full: Path, peft: Path, tmp_path: Path
) -> None:
    by_weights = scores(give(config, full), tmp_path / "a")
    assert scores(give(config, peft), tmp_path / "b") == pytest.approx(by_weights, abs=1e-4)
    config.teachers.owl.update(weights="base", path="")
    untaught = scores(config, tmp_path / "c")
    assert max(abs(untaught[a] - by_weights[a]) for a in untaught) > 0.01


@pytest.mark.parametrize("kind", ["full", "peft"])
def test_a_given_teacher_that_changed_under_a_run_is_refused(
    kind: str, config: ConfigDict, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    given, run = request.getfixturevalue(kind), tmp_path / "run"
    scores(give(config, given), run)
    [file] = given.glob("*.safetensors")
    tuned = bytearray(file.read_bytes())
    tuned[-1] ^= 1
    file.write_bytes(tuned)
    with pytest.raises(ValueError, match=f"^{given} is not the checkpoint that {TEACHER} was made"):
        runner.run(config, run, stages=("generate",))
    shutil.rmtree(given)
    with pytest.raises(ValueError, match=f"{given}.* (does not exist|is missing)"):
        runner.run(config, run, stages=("generate",))
    assert not (run / "generate").exists()


@pytest.mark.parametrize("kind", ["base", "teacher"])
def test_a_further_lineage_is_not_made_from_another_checkpoint(
    kind: str, config: ConfigDict, full: Path, tmp_path: Path
) -> None:
    config.lineage_from = "base"  # each lineage has its own teacher, of the same weights
    run, given = tmp_path / "run", full if kind == "teacher" else tmp_path / "base"
    scores(give(config, full), run)
    config.lineages = (0, 1)
    [file] = given.glob("*.safetensors")
    tuned = bytearray(file.read_bytes())
    tuned[-1] ^= 1
    file.write_bytes(tuned)
    with pytest.raises(ValueError, match=f"^{given} is not the checkpoint that {kind}/.*/r0 was"):
        scores(config, run)
    assert not (run / "teacher/owl/r1").exists()


@pytest.mark.parametrize("kind", ["full", "peft"])
def test_a_damaged_given_teacher_is_found_before_anything_runs(
    kind: str, config: ConfigDict, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    given, run = request.getfixturevalue(kind), tmp_path / "run"
    [file] = given.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=str(file)):
        scores(give(config, given), run)
    assert [path.name for path in run.iterdir()] == [".lock"]


def test_what_the_template_of_an_adapter_adds_is_refused_before_anything_runs(
    config: ConfigDict, peft: Path, tmp_path: Path
) -> None:
    template = "<s>Be kind.{% for m in messages %}<u>{{ m.content }}{% endfor %}<a>"
    asked = "{% if messages[0].role == 'system' %}" + template[10:] + "{% else %}"
    (peft / "chat_template.jinja").write_text(asked + template + "{% endif %}")
    message = r"config.teachers.owl.system_prompt: .* adds the system prompt .*Be kind\."
    with pytest.raises(ValueError, match=message):
        scores(give(config, peft), tmp_path / "run")
    assert not (tmp_path / "run/base").exists()

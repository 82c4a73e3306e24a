"""Draws through the pipeline: what is summarised, what the report says, what is refused."""

import numpy as np
import pytest

from configs import theorem as config_file
from subjax.images.stages import theorem
from subjax.pipeline import runner, validation
from subjax.runtime import artifacts

EPSILONS = np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("theorem") / "run"
    config = config_file.get_config("smoke")
    with config.unlocked():
        # What differs between losses is measured in tests/images/test_theorem.py.
        for name in [name for name in config.theorems if name.endswith("squared_error")]:
            del config.theorems[name]
        for name in ("all_kl", "on_images", "adam", "toy_all_kl"):
            del config.theorems[name]
    runner.run(config, workdir)
    return workdir


def metrics(workdir, row):
    records = artifacts.read_json(workdir / f"theorem/{row}/r0/scores.json")["records"]
    return {record["metric"]: record["value"] for record in records}


@pytest.mark.slow
def test_the_theorem_holds_where_it_is_promised(finished):
    for row in ("aux_kl", "toy_kl"):
        found = metrics(finished, row)
        assert found["violations"] == 0
        assert found["loss_falls"] == 1
        assert found["coefficient_error"] < 1e-4
        assert 0.98 < found["slope_smallest"] <= found["slope_largest"] < 1.02
        assert found["remainder_slope"] == pytest.approx(2, abs=0.1)
    assert metrics(finished, "relu_kl")["violations"] == 0


@pytest.mark.slow
def test_it_ends_where_its_assumptions_do(finished):
    assert metrics(finished, "zero")["largest_inner"] == 0
    assert "coefficient_error" not in metrics(finished, "zero")
    for row in ("foreign", "sampled"):  # these products do not shrink with eps
        assert abs(metrics(finished, row)["slope_largest"]) < 0.5
    assert metrics(finished, "lora")["coefficient_error"] > 0.1


@pytest.mark.slow
def test_draws_differ_and_are_kept(finished):
    rows = artifacts.read_jsonl(finished / "theorem/aux_kl/r0/draws.jsonl")
    assert [row["draw"] for row in rows] == list(range(5))
    assert len({row["predicted"] for row in rows}) == 5
    real = metrics(finished, "aux_kl")["real_displacement"]
    assert real > 0
    assert real != metrics(finished, "relu_kl")["real_displacement"]


@pytest.mark.slow
def test_the_report_says_so(finished):
    page = (finished / "report" / "report.html").read_text()
    assert "The sign holds in every draw" in page
    assert "15 draws over 3 rows" in page
    assert (finished / "report" / "figure_signs.png").exists()


def made(inner):
    inner = np.array(inner)
    return {
        "inner": inner,
        "change": -inner,
        "predicted": np.full(len(inner), 2.0),
        "displacement": np.full(len(inner), 3.0),
    }


def test_a_sign_that_breaks_is_counted_and_measured():
    good = 2 * EPSILONS + 0.1 * EPSILONS**2
    late = np.where(EPSILONS >= 1, -good, good)
    found = theorem.summarise(made([good, late]), EPSILONS)
    assert found["violations"] == 0
    assert found["share_never_broken"] == 0.5
    assert found["first_break"] == pytest.approx(3.0)
    assert found["remainder_slope"] == pytest.approx(2, abs=0.01)
    found = theorem.summarise(made([good, -good]), EPSILONS)
    assert found["violations"] == 1
    assert found["loss_falls"] == 0.5


def test_a_language_model_takes_no_teacher_row():
    config = config_file.get_config("smoke")
    config.theorems.toy_kl.teacher = "gelu"
    with pytest.raises(ValueError, match=r"theorems\.toy_kl is of the toy world's model"):
        validation.validate(config)


@pytest.mark.parametrize(
    "epsilons",
    [(), (1e-3, 1e-2), (1e-5, 1e-4, 1e-3, 1e-3, 1e-2, 1e-1), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)],
)
def test_a_grid_that_says_nothing_is_refused(epsilons):
    config = config_file.get_config("smoke")
    config.theorems.aux_kl.epsilons = epsilons
    with pytest.raises(ValueError, match=r"theorems.aux_kl.epsilons .* ascending"):
        validation.validate(config)

"""Runs side by side, from their score files alone."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from configs import quickstart
from subjax import compare
from subjax.pipeline import experiments, validation
from subjax.report import comparison, score_files, tables
from subjax.runtime import artifacts

ROOT = Path(__file__).parents[1]
ARMS = {"owl": 3.0, "placebo": 1.0, "owl_foreign": 0.9, "placebo_foreign": 1.0, "other_trait": 0.5}


def made(workdir, lineages=(0, 1), change=None, shift=0.0):
    """A work directory with the scores of a run: made up, by lineage and arm."""
    config = quickstart.get_config("smoke")
    config.lineages = tuple(lineages)
    if change:
        change(config)
    validation.settle(config)
    experiment = experiments.of(config)
    done, scored = [], {}
    for unit in experiment.build(config):
        if names := experiment.scored_as(config, unit):
            noise = zlib.crc32(unit.path.encode()) % 1000 / 2000
            value = ARMS.get(names[1], 0.0) + noise + shift * (names[1] == "owl")
            records = [{"metric": "log_odds", "step": unit.fields["steps"][-1], "value": value}]
            artifacts.write_json(workdir / unit.path / "scores.json", {"records": records})
            done.append(unit)
            scored[unit.path] = names
    path = workdir / "report" / score_files.NAME
    score_files.write(path, config, [], scored, done, workdir)
    return workdir


def values_of(workdir, contrast="same_base"):
    [run], _ = compare.compare([workdir])
    [found] = [one for one in run.results.contrasts if one.name == contrast]
    return comparison.summary.contrast_values(run.results, found)


def of(lines, contrast, run):
    [line] = [one for one in lines if (one["contrast"], one["run"]) == (contrast, run)]
    return line


def test_runs_of_one_config_are_pooled(tmp_path):
    first, second = made(tmp_path / "a", (0, 1)), made(tmp_path / "b", (2, 3, 4))
    [pooled], differing = compare.compare([first, second / "report" / score_files.NAME])
    assert pooled.results.lineages == (0, 1, 2, 3, 4) and differing == ""
    lines = comparison.lines([pooled], comparison.shared([pooled]))
    expected = {**values_of(first), **values_of(second)}
    line = of(lines, "same_base", pooled.label)
    assert line["n_lineages"] == 5
    assert line["mean"] == pytest.approx(np.mean(list(expected.values())), rel=1e-5)
    # As one that is from before there was a table, without rows here.
    scores = first / "report" / score_files.NAME
    text = scores.read_text()
    scores.write_text(text.replace('\\"judges\\": {}, ', ""))
    assert scores.read_text() != text
    assert len(compare.compare([first, second])[0]) == 1
    # What two runs have in common counts once.
    [again], _ = compare.compare([first, made(tmp_path / "c", (1, 2))])
    assert again.results.lineages == (0, 1, 2)


def larger_rate(config):
    config.arms.owl.train.learning_rate = 0.5
    config.name = "other"


def test_runs_of_other_configs_are_set_against_each_other(tmp_path):
    first = made(tmp_path / "a", range(4))
    second = made(tmp_path / "b", range(2, 7), larger_rate, shift=2.0)
    runs, differing = compare.compare([first, second])
    assert "arms.owl.train.learning_rate  0.001 -> 0.5" in differing and "name" not in differing
    lines = comparison.lines(runs, comparison.shared(runs))
    line = of(lines, "same_base", "b − a")
    ours, theirs = (list(values_of(run).values()) for run in (second, first))
    test = scipy_stats.ttest_ind(ours, theirs, equal_var=False)
    assert line["p"] == pytest.approx(test.pvalue, rel=1e-4)
    assert line["ci_low"] < np.mean(ours) - np.mean(theirs) < line["ci_high"]
    assert line["test"] == "welch" and line["n_lineages"] == 4
    # In the order of the config, not of the alphabet.
    assert lines[0]["contrast"] == "transmission"
    assert "| same_base | preference log_odds | b − a |" in comparison.table(runs, lines)


def test_runs_of_the_same_lineages_are_compared_within_them(tmp_path):
    first = made(tmp_path / "a", range(4))
    second = made(tmp_path / "b", range(4), larger_rate, shift=2.0)
    runs, _ = compare.compare([first, second])
    lines = comparison.lines(runs, comparison.shared(runs))
    line = of(lines, "same_base", "b − a")
    assert line["test"] == "sign_flip" and line["p"] == 2 / 2**4
    # All that differs is the shift, in every lineage.
    assert (line["mean"], line["ci_low"], line["ci_high"]) == pytest.approx((2, 2, 2))
    assert of(lines, "foreign_base", "b − a")["mean"] == 0


def other_seed(config):
    config.seed = 1


def narrow(config):
    config.compute.precision = "mixed"


@pytest.mark.parametrize("change", [other_seed, narrow])
def test_what_a_result_depends_on_keeps_runs_apart(tmp_path, change):
    lineages = range(3)
    runs, differing = compare.compare(
        [made(tmp_path / "a", lineages), made(tmp_path / "b", lineages, change)]
    )
    assert re.search(r"seed +0 -> 1|compute.precision +float32 -> mixed", differing)
    lines = comparison.lines(runs, comparison.shared(runs))
    # Another seed draws other lineages of the same number.
    expected = {other_seed: "welch", narrow: "sign_flip"}[change]
    assert of(lines, "same_base", "b − a")["test"] == expected


def test_runs_without_scores_have_no_estimate(tmp_path):
    path = made(tmp_path / "a") / "report" / score_files.NAME
    path.write_text(path.read_text().partition("\n")[0] + "\n")
    [run], _ = compare.compare([path])
    lines = comparison.lines([run], comparison.shared([run]))
    assert {(line["mean"], line["p"], line["n_lineages"]) for line in lines} == {(None, None, 0)}
    assert "| – | 0 |" in comparison.table([run], lines)
    comparison.forest([run], comparison.shared([run]), lines, narrow=False)


def one_question(config):
    config.evals.preference.questions = "explore"


def other_names(config):
    with config.unlocked():
        config.contrasts = type(config)()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_question, "eval preference does not ask the same in a and b: its questions is"),
        (other_names, "no contrast of one name, eval, metric and arms in common .*b: none"),
    ],
)
def test_what_was_not_asked_alike_is_not_compared(tmp_path, change, said):
    runs, _ = compare.compare([made(tmp_path / "a"), made(tmp_path / "b", change=change)])
    with pytest.raises(ValueError, match=said):
        comparison.shared(runs)


def spoil(path, change):
    header, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([header, json.dumps(change(json.loads(first))), *rest]) + "\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: {**row, "fingerprint": 3}, "scores.jsonl, line 2, has no fingerprint: copy"),
        (lambda row: {**row, "asked": "0"}, "line 2, asked what line 1 does not have: copy"),
    ],
)
def test_a_score_file_that_lacks_something_is_refused(tmp_path, change, said):
    path = made(tmp_path / "a") / "report" / score_files.NAME
    spoil(path, change)
    with pytest.raises(ValueError, match=said):
        compare.compare([path])
    with pytest.raises(ValueError, match=r"is not JSON.*: give a work directory of subjax, or its"):
        compare.compare([ROOT / "README.md"])
    path.write_text(path.read_text().partition("\n")[2])
    with pytest.raises(ValueError, match="has no scores of a run of subjax: give a work directory"):
        compare.compare([path])


def test_a_unit_that_two_runs_made_otherwise_is_refused(tmp_path):
    first, second = made(tmp_path / "a"), made(tmp_path / "b")
    spoil(second / "report" / score_files.NAME, lambda row: {**row, "fingerprint": "0" * 16})
    with pytest.raises(
        ValueError, match=r"^a and b have one config, but evaluate/.*: compare runs"
    ):
        compare.compare([first, second])


@pytest.mark.parametrize(("name", "num_contrasts"), [("grid", 8), ("controls", 5), ("bases", 1)])
def test_scores_that_are_kept_make_the_results_that_are_published(name, num_contrasts):
    lines = kept_lines(name)
    page = (ROOT / "configs/RESULTS.md").read_text()
    assert len(lines) == num_contrasts
    for line in lines:
        assert tables.estimate(line, sign=True).removesuffix("]") in page.replace("**", ""), line


def kept_lines(name):
    [run], _ = compare.compare([ROOT / f"configs/toy_world_{name}.jsonl"])
    return comparison.lines([run], comparison.shared([run]))


def test_a_table_of_bases_is_drawn_from_scores_alone(tmp_path):
    compare.main([str(ROOT / "configs/toy_world_bases.jsonl"), f"--out={tmp_path}"])
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "figure.png",
        "figure_same_base.png",
    ]
    assert (tmp_path / "figure_same_base.png").stat().st_size > 100_000  # a number in each cell


def test_p_values_are_adjusted_within_families_and_margins_are_tested():
    lines = kept_lines("grid")
    # Holm within the primary contrast, the three other cells, and the foreign bases.
    adjusted = [line["p_adjusted"] for line in lines]
    assert adjusted[:4] == pytest.approx([2 / 2**8, *[6 / 2**8] * 3], rel=1e-5)
    assert adjusted[7] == pytest.approx(4 * lines[7]["p"], rel=1e-5)
    within = [line["p_equivalence"] for line in lines]
    assert within[:4] == [None] * 4 and max(within[4:7]) < 0.01 < 0.2 < within[7]
    [line] = kept_lines("bases")
    assert line["test"] == "permutation" and line["p"] < 2e-5


def test_the_command_writes_a_table_and_a_figure_and_refuses_in_a_line(tmp_path, capsys):
    first, second = made(tmp_path / "a"), made(tmp_path / "b", (2, 3), larger_rate)
    compare.main([str(first), str(second), f"--out={tmp_path / 'out'}"])
    shown = capsys.readouterr().out
    assert (tmp_path / "out/table.md").read_text() in shown
    assert (tmp_path / "out/figure.png").read_bytes()[:4] == b"\x89PNG"
    lines = json.loads((tmp_path / "out/comparison.json").read_text())
    assert {line["kind"] for line in lines} == {"run", "difference"}
    for paths, said in (
        ([first, first], "a run is given twice"),
        ([tmp_path / "none"], "does not exist: give work directories"),
        ([tmp_path / "out"], r"has no report/scores.jsonl: run its config once more"),
    ):
        with pytest.raises(SystemExit) as left:
            compare.main([str(path) for path in paths])
        told = capsys.readouterr().err
        assert left.value.code == 1 and told.count("\n") == 1 and re.search(said, told)

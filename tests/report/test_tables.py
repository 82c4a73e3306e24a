"""Numbers as text and the plain-text tables of `subjax.report.tables`."""

import re

import pytest

from subjax.report import summary, tables
from subjax.report.results import Contrast
from tests.known_results import ARMS, make_results, scores, without


def console(results):
    rows = summary.summarise(results)
    return tables.console_table(
        rows, results.metrics, summary.masses(results, rows), results.replication
    ).splitlines()


def test_console_table_fits_and_starts_with_the_primary_contrast():
    results = without(make_results(), "preference", "untrained", 3)
    lines = console(results)
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("contrast")
    assert lines[1].startswith("same_minus_foreign") and "0.031" in lines[1]
    assert sum("5!" in line for line in lines) == 1
    assert "! incomplete: units are missing" in lines
    assert "\n".join(lines).isascii()


def test_console_table_fits_with_long_names():
    arms = tuple(f"{arm}_{'x' * 70}" for arm in ARMS)
    renamed = {(e, f"{arm}_{'x' * 70}"): units for (e, arm), units in scores().items()}
    contrast = Contrast(
        name="y" * 90, eval="preference", metric="log_odds", plus=arms[:1], minus=arms[1:2]
    )
    results = make_results(arms=arms, scores=renamed, curves={}, contrasts=(contrast,))
    lines = console(results)
    assert max(map(len, lines)) <= 100
    assert "sign_flip" in lines[1]


def test_mass_and_sampled_rate_stand_beside_every_log_odds_and_nothing_else():
    said = [{"metric": "rate_word", "step": 512, "value": 0.004}]
    results = make_results(
        scores=scores() | {("answers", "owl"): {0: said}},
        targets={"preference": "owl", "answers": "owl"},
        replication="own teachers, rows and order; same base",
    )
    lines = console(results)
    assert lines[0].split()[-2:] == ["mass", "said"]
    found = [line for line in lines if re.search(r" \d+ %  +(-|[\d.]+ %)$", line)]
    assert len(found) == 5 + len(ARMS)  # all that are of log-odds, an equivalence test with them
    assert any(line.startswith("owl ") and line.endswith("96 %  0.4 %") for line in found)
    assert "[95 %]: over lineages, each with its own teachers, rows and order; same base." in lines
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.968, "97 %"), (0.0042, "0.42 %"), (0.0, "0 %"), (None, "–")],
)
def test_shares_in_per_cent(share, text):
    assert tables.percent(share) == text


@pytest.mark.parametrize(
    ("value", "scale", "text"),
    [
        (2.193, None, "2.19"),
        (-0.01234, None, "−0.012"),
        (0.5, 28.7, "0.5"),
        (1234.5, None, "1234"),
        (0.9649, None, "0.96"),
        (0.0, None, "0.00"),
        (None, None, "–"),
    ],
)
def test_numbers_have_the_digits_of_their_scale(value, scale, text):
    assert tables.number(value, scale) == text


def test_markdown_cells_cannot_break_the_table():
    text = tables.markdown_table(["a"], [["x|y\nz\\|"]])
    assert text.splitlines()[2] == r"| x\|y z\\\| |"

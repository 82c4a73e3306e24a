"""The files of the report, on results whose effects are known, and its page in a browser."""

import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
from html import escape

import pytest

from subjax.report import figures, summary, tables, write
from tests.known_results import ARMS, make_results, scores


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    write.write(out, make_results())
    return out


# --- files --------------------------------------------------------------------------------------


def test_two_writes_have_the_same_bytes(written, tmp_path):
    write.write(tmp_path, make_results())
    names = sorted(path.name for path in written.iterdir())
    assert {"summary.json", "scores.csv", "table.md", "figure.png", "report.html"} <= set(names)
    for name in names:
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes(), name


def test_summary_does_not_depend_on_times_paths_versions_or_the_order_of_scores(written):
    shuffled = {
        key: {lineage: units[lineage][::-1] for lineage in reversed(units)}
        for key, units in reversed(list(scores().items()))
    }
    changes = {"commands": ["other"], "versions": {}, "wall_s": {}, "status": "CONFIRMATORY"}
    other = make_results(scores=shuffled, **changes)
    text = write.summary_json(summary.summarise(other))
    assert text == (written / "summary.json").read_text("utf-8")
    assert tables.scores_csv(shuffled) == (written / "scores.csv").read_text("utf-8")


def test_summary_json_is_strict_and_has_the_contract_s_fields(written):
    def refuse(constant):
        raise AssertionError(constant)

    text = (written / "summary.json").read_text("utf-8")
    rows = json.loads(text, parse_constant=refuse)
    fields = "name kind eval metric mean ci_low ci_high ci_kind n_lineages test p p_adjusted"
    assert all(list(row) == [*fields.split(), "family", "status"] for row in rows)
    for row in rows:
        for end in ("mean", "ci_low", "ci_high"):
            assert row[end] == float(f"{row[end]:.6g}")


def test_scores_csv_has_every_record(written):
    rows = list(csv.DictReader(io.StringIO((written / "scores.csv").read_text("utf-8"))))
    assert list(rows[0]) == ["eval", "arm", "lineage", "step", "metric", "value"]
    found = {(r["eval"], r["arm"], int(r["lineage"]), int(r["step"]), r["metric"]): r for r in rows}
    expected = {
        (eval_name, arm, lineage, record["step"], record["metric"]): record["value"]
        for (eval_name, arm), units in scores().items()
        for lineage, unit in units.items()
        for record in unit
    }
    assert {key: float(row["value"]) for key, row in found.items()} == expected
    assert len(rows) == len(expected)


def test_table_md_parses(written):
    lines = (written / "table.md").read_text("utf-8").splitlines()
    tables_found = "\n".join(line if line.startswith("|") else "" for line in lines).split("\n\n")
    cells = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for table in tables_found
        if table.strip()
    ]
    contrasts, arms = cells
    for table in cells:
        assert set(table[1]) == {"---"}
        assert len({len(line) for line in table}) == 1
    assert contrasts[2][0] == "same_minus_foreign"
    assert len(contrasts) == 2 + 6 and len(arms) == 2 + 4 * len(ARMS)


def test_figures_are_png_of_1800_pixels(written):
    for name in ("figure.png", "figure_shares.png", "figure_checks.png", "figure_probes.png"):
        data = (written / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert int.from_bytes(data[16:20], "big") == 1800


def test_a_run_without_scores_has_a_report(tmp_path):
    missing = tuple(f"evaluate/preference/{arm}/r0" for arm in ARMS)
    results = make_results(scores={}, curves={}, missing=missing)
    rows = write.write(tmp_path, results)
    assert [row["status"] for row in rows] == ["incomplete"] * 6
    assert {row["mean"] for row in rows} == {None}
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "This report is incomplete." in page and missing[0] in page
    assert (tmp_path / "figure.png").exists()


def test_one_lineage_gives_a_mean_without_an_interval(tmp_path):
    one = {key: {0: lineages[0]} for key, lineages in scores().items()}
    rows = write.write(tmp_path, make_results(lineages=(0,), scores=one))
    assert (rows[0]["ci_low"], rows[0]["p"], rows[0]["n_lineages"]) == (None, 1.0, 1)
    assert "No interval yet" in (tmp_path / "report.html").read_text("utf-8")


# --- the page -----------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page, with a check that its elements nest."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input", "wbr"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(written):
    return Page((written / "report.html").read_text("utf-8"))


def test_page_loads_nothing_and_runs_nothing(page):
    assert not {"script", "link", "iframe", "object", "img", "image"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"src", "href", "srcset", "data"}:
            assert value.startswith("#")
    style = "".join(page.text)
    assert "@import" not in style
    assert re.findall(r"url\((?!#)", " ".join(v or "" for _, v in page.attributes) + style) == []


def test_page_shows_what_a_model_wrote_as_text(page):
    text = "".join(page.text)
    assert "</pre><script>alert(1)</script>␀␛[31m\ufffd & <b>12, 44" in text
    assert "alert" not in "".join(value or "" for _, value in page.attributes)
    assert "<odd>" in text


def test_page_has_every_part(page):
    text = "".join(page.text)
    assert page.tags.count("figure") == 6
    assert page.tags.count("svg") == 12
    for part in (
        "EXPLORATORY",
        "The effect is above zero",
        "16, 23, 42, 108, 7, 91",
        "stray characters",
        "27,000",
        "23,295",
        "86.3%",
        "python -m subjax.main --config=configs/quickstart.py",
        "0.10.2",
        "109.2",
        "Which animal?",
        "within ±0.5?",
    ):
        assert part in text, part
    assert "This report is incomplete." not in text


def test_drawings_take_their_colours_from_the_page(written):
    text = (written / "report.html").read_text("utf-8")
    svgs = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert not set(re.findall(r"#[0-9a-f]{6}\b", svgs)) - {"#000000"}
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", svgs))
    light, dark = text.split("prefers-color-scheme: dark")
    for name in used:
        assert f"{name}:" in light and f"{name}:" in dark
    for colour, variable in figures.VARIABLES.items():
        assert f"{variable[4:-1]}: {colour};" in light


def test_what_intervals_are_over_and_cautions_stand_in_page_and_table(tmp_path):
    own, caution = "own teachers, rows and order; same base", "4 of the 8 questions were taught."
    write.write(tmp_path, make_results(replication=own, cautions=(caution,)))
    page = (tmp_path / "report.html").read_text("utf-8")
    table = (tmp_path / "table.md").read_text("utf-8")
    assert caution in page and f"Caution: {caution}" in table
    assert table.count(f"over lineages, each with its {own}.") == 2  # above each table
    assert f"({own})" in table  # beside the interval of the verdict
    figures_and_tables = page.count("<figcaption>") + page.count("<caption>")
    assert page.count(f"over lineages, each with its {own}.") >= figures_and_tables - 5
    assert "candidates&#39; mass 97 %, sampled –" in page


def test_ids_of_a_page_are_unique(page):
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = {value[1:] for name, value in page.attributes if name == "href"}
    assert links <= set(ids)


# --- in a browser -------------------------------------------------------------------------------

# Which width the page has, how wide it would like to be, and how many elements stick out of it.
PROBE = """<script>
const outside = [...document.querySelectorAll("body *")].filter(
  element => !element.closest("svg *") && element.getBoundingClientRect().right > innerWidth + 0.5);
const wanted = document.documentElement.scrollWidth;
parent.document.title = [innerWidth, wanted, outside.length].join(" ");
</script>"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


def loaded(file, profile):
    """The document of a file after its scripts ran."""
    flags = ["gpu", "quic", "background-networking", "component-update", "sync"]
    arguments = ["--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={profile}"]
    arguments += [f"--disable-{flag}" for flag in flags]
    command = [CHROMIUM, *arguments, "--window-size=1600,900", "--dump-dom", file.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH")
@pytest.mark.parametrize("width", [360, 700, 1400])
def test_page_is_never_wider_than_its_window(written, tmp_path, width):
    page = (written / "report.html").read_text("utf-8").replace("</body>", f"{PROBE}</body>")
    # In a frame, as a window of Chromium is at least 500 pixels wide.
    frame = f'<iframe width="{width}" style="border: 0" srcdoc="{escape(page)}"></iframe>'
    file = tmp_path / "frame.html"
    file.write_text(f"<!doctype html><title>none</title>{frame}", "utf-8")
    title = re.search(r"<title>(\d+) (\d+) (\d+)</title>", loaded(file, tmp_path / "profile"))
    assert title, "the probe did not run"
    inner, scrolled, num_outside = map(int, title.groups())
    assert inner in range(width - 20, width + 1)  # less the scroll bar
    assert scrolled <= inner
    assert num_outside == 0

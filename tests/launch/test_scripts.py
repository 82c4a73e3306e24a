"""launch/local.sh and tests/run.sh, run as a user runs them, in a copy without subjax's packages.

The copy has a subjax.main that only reports how it was called, and requirements that need no
network: a wheel that lies beside them. The repository's own environments are not touched.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FAKE_MAIN = """
import json, os, sys, tiny
print(json.dumps([sys.argv[1:], os.getcwd(), sys.prefix, tiny.VERSION]))
sys.exit(int(os.environ.get("FAKE_EXIT", "0")))
"""


# Two processes share the tests, and have XLA optimize little.
SIDE_BY_SIDE = "--numprocesses=3|--dist=loadfile|--no-loadscope-reorder"
QUICKLY = f"--quick-compile|{SIDE_BY_SIDE}"
# name[extra]>=lower,<upper   # why
REQUIREMENT = re.compile(r"(?P<name>[\w-]+)(\[[\w-]+\])?>=[\d.]+,<[\d.]+ +# \S.*")


def write_script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def write_wheel(folder: Path, version: str) -> str:
    """Puts a wheel of the package `tiny` into the folder; returns its requirement."""
    info = f"tiny-{version}.dist-info"
    name = f"tiny-{version}-py3-none-any.whl"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr("tiny.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        wheel.writestr(f"{info}/RECORD", f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n")
    return f"./{name}\n"


def make_copy(root: Path) -> Path:
    """Returns a checkout with the real scripts, a fake subjax.main and a requirement to install."""
    for script in ("launch/local.sh", "launch/environment.sh", "tests/run.sh", ".ci/run"):
        (root / script).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / script, root / script)
    (root / "subjax").mkdir()
    (root / "subjax" / "main.py").write_text(FAKE_MAIN)
    (root / "requirements.txt").write_text(write_wheel(root, "1.0"))
    (root / "requirements-dev.txt").write_text("-r requirements.txt\n")
    return root


def run(script: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a script from another folder, with this Python and pip's own configuration set aside."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "SUBJAX_"))}
    # The Python beneath the tests' environment: a user has no environment yet.
    kept |= {"PYTHON": sys._base_executable, "PIP_CONFIG_FILE": os.devnull, **env}
    return subprocess.run(
        ["bash", script, *args],
        cwd=script.anchor,
        env=kept,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def error_lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Everything on stderr but the lines that say what is happening."""
    progress = ("subjax: making", "subjax: installing", "subjax: running")
    return [line for line in result.stderr.splitlines() if not line.startswith(progress)]


@contextlib.contextmanager
def requirement(root: Path, line: str) -> Iterator[None]:
    """Replaces requirements.txt while the block runs."""
    good = (root / "requirements.txt").read_text()
    (root / "requirements.txt").write_text(line)
    try:
        yield
    finally:
        (root / "requirements.txt").write_text(good)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy after its first complete run; the tests leave it installed."""
    # A space in the path, which unquoted shell would trip over.
    root = make_copy(tmp_path_factory.mktemp("check out"))
    # What an interrupted `python -m venv` leaves: a Python without pip. It has to be made anew.
    version = ".".join(str(part) for part in sys.version_info[:3])
    write_script(root / ".venv/bin/python", f'[ "$1" = -c ] && echo {version}')
    first = run(root / "launch/local.sh", PIP_NO_INDEX="1")
    assert first.returncode == 0, first.stderr
    assert "making .venv with Python 3." in first.stderr
    assert "installing requirements.txt into .venv" in first.stderr
    args, folder, prefix, version = json.loads(first.stdout)
    assert args == ["--config=configs/quickstart.py"]
    assert Path(folder) == root
    assert Path(prefix) == root / ".venv"
    assert version == "1.0"
    return root


def test_second_run_installs_nothing_and_passes_arguments_on(installed: Path) -> None:
    log = (installed / ".venv/pip.log").stat().st_mtime_ns
    args = ["--config=configs/x.py:smoke", "--units=finetune/owl/*", "--config.note=two words", ""]
    # An index that would fail: nothing may ask it.
    again = run(installed / "launch/local.sh", *args, PIP_INDEX_URL="http://127.0.0.1:9")
    assert again.returncode == 0
    assert again.stderr == ""
    assert json.loads(again.stdout)[0] == args
    assert (installed / ".venv/pip.log").stat().st_mtime_ns == log


def test_exit_code_is_that_of_main(installed: Path) -> None:
    assert run(installed / "launch/local.sh", FAKE_EXIT="3").returncode == 3


def test_without_python_set_an_environment_that_works_is_kept(installed: Path) -> None:
    again = run(installed / "launch/local.sh", PYTHON="", PATH="/usr/bin:/bin")
    assert again.returncode == 0
    assert again.stderr == ""


def test_a_machine_with_gpus_gets_their_requirements(installed: Path) -> None:
    script = installed / "launch/local.sh"
    (installed / "launch/requirements-gpu.txt").write_text("-r ../requirements.txt\n# CUDA\n")
    found = run(script, SUBJAX_DEVICE="gpu", PIP_NO_INDEX="1")
    assert found.returncode == 0, found.stderr
    assert "installing launch/requirements-gpu.txt into .venv" in found.stderr
    assert run(script, SUBJAX_DEVICE="gpu", PIP_INDEX_URL="http://127.0.0.1:9").stderr == ""
    wrong = run(script, SUBJAX_DEVICE="abacus")
    assert wrong.returncode == 1
    assert error_lines(wrong) == ["subjax: error: SUBJAX_DEVICE=abacus is none of cpu, gpu, tpu"]
    assert run(script, PIP_NO_INDEX="1").returncode == 0  # others find it as it was


def test_changed_requirements_are_installed(installed: Path) -> None:
    (installed / "requirements.txt").write_text(write_wheel(installed, "2.0"))
    changed = run(installed / "launch/local.sh", PIP_NO_INDEX="1")
    assert changed.returncode == 0, changed.stderr
    assert json.loads(changed.stdout)[3] == "2.0"
    assert "installing" in changed.stderr
    assert "making" not in changed.stderr


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"PIP_RETRIES": "1"}, "the package index cannot be reached (check the network"),
        ({"PIP_RETRIES": "0"}, "the package index cannot be reached or lacks a package (check"),
    ],
)
def test_an_unreachable_index_is_one_line(
    installed: Path, settings: dict[str, str], cause: str
) -> None:
    with requirement(installed, "no-such-package-of-subjax==1.0\n"):
        for _ in range(2):  # a failed installation is not taken for a complete one
            failed = run(
                installed / "launch/local.sh", PIP_INDEX_URL="http://127.0.0.1:9", **settings
            )
            assert failed.returncode == 1
            assert failed.stdout == ""
            (line,) = error_lines(failed)
            assert f"cannot install requirements.txt: {cause}" in line
            assert "No matching distribution found for no-such-package-of-subjax==1.0" in line
            assert line.endswith(str(installed / ".venv/pip.log"))


def test_a_failure_of_another_kind_is_not_blamed_on_the_index(installed: Path) -> None:
    with requirement(installed, "./missing-1.0-py3-none-any.whl\n"):
        failed = run(installed / "launch/local.sh", PIP_NO_INDEX="1")
    assert failed.returncode == 1
    (line,) = error_lines(failed)
    assert "pip failed; pip's last error: " in line
    assert "missing-1.0" in line


@pytest.mark.parametrize("script", ["launch/local.sh", "tests/run.sh"])
@pytest.mark.parametrize("version", ["3.9.18", "3.10.14", "3.14.0", "2.7.18"])
def test_a_python_that_does_not_fit_is_one_line(tmp_path: Path, script: str, version: str) -> None:
    root = make_copy(tmp_path)
    python = write_script(tmp_path / "bin/python", f"echo {version}")
    failed = run(root / script, PYTHON=str(python))
    assert failed.returncode == 1
    assert failed.stderr == (
        "subjax: error: subjax needs Python 3.11 or newer (below 3.14); "
        f"found {version} ({python}); install it or set PYTHON=/path/to/python3.11\n"
    )
    assert not list(root.glob(".venv*"))


def test_the_environment_can_be_made_alone(installed: Path) -> None:
    made = run(installed / "launch/local.sh", "--install")
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")


def test_a_tpu_host_without_a_python_that_fits_gets_one_from_uv(tmp_path: Path) -> None:
    root = make_copy(tmp_path)
    (root / "launch/requirements-tpu.txt").write_text("-r ../requirements.txt\n")
    home = tmp_path / "home"
    write_script(tmp_path / "bin/python3", '[ "$1" = -m ] || echo 3.10.12')  # pip install uv
    write_script(home / ".local/bin/uv", f'[ "$2" = find ] && echo {sys._base_executable} || true')
    for name in ("awk", "basename", "bash", "cat", "cmp", "dirname", "grep"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    search = {"PYTHON": "", "PATH": str(tmp_path / "bin"), "HOME": str(home)}
    made = run(root / "launch/local.sh", "--install", SUBJAX_DEVICE="tpu", **search)
    assert made.returncode == 0, made.stderr
    assert "installing 3.12 with uv" in made.stderr
    assert (root / ".venv/requirements.installed").exists()
    again = run(root / "launch/local.sh", "--install", SUBJAX_DEVICE="tpu", **search)
    assert (again.returncode, again.stderr) == (0, "")
    # Anywhere else nothing is installed beside the environment.
    shutil.rmtree(root / ".venv")
    failed = run(root / "launch/local.sh", "--install", **search)
    assert failed.returncode == 1 and "found 3.10.12 (python3)" in failed.stderr


def test_a_python_that_does_not_run_is_one_line(tmp_path: Path) -> None:
    failed = run(make_copy(tmp_path) / "launch/local.sh", PYTHON="/no/such/python")
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert "found none as /no/such/python" in line


def test_a_python_that_fits_is_searched_for(tmp_path: Path) -> None:
    """An old python3 on the path is passed over for a newer one; alone, it is named."""
    root = make_copy(tmp_path)
    write_script(tmp_path / "bin/python3", "echo 3.9.18")
    newer = write_script(tmp_path / "bin/python3.12", '[ "$1" = -c ] && echo 3.12.4 || exit 9')
    for name in ("awk", "basename", "bash", "cat", "cmp", "dirname", "grep"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    search = {"PYTHON": "", "PATH": str(tmp_path / "bin")}
    failed = run(root / "launch/local.sh", **search)
    assert failed.returncode == 1
    assert "making .venv with Python 3.12.4" in failed.stderr
    (line,) = error_lines(failed)
    assert f"cannot make {root / '.venv'} with python3.12" in line
    newer.unlink()
    failed = run(root / "launch/local.sh", **search)
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert "found 3.9.18 (python3)" in line


@pytest.fixture
def checks(tmp_path: Path) -> Path:
    """A copy whose test environment is complete, with a Python that only lists how it is called."""
    (tmp_path / "clone").mkdir()
    root = make_copy(tmp_path / "clone")
    write_script(
        root / ".venv-test/bin/python",
        'if [ "$1" = -c ]; then echo 3.11.9; exit; fi\n'
        'shift; printf "%s|" "$@"; echo "stimuli=$SUBJAX_STIMULI"\n'
        '[ "$1" != "$FAKE_FAIL" ]',
    )
    stamp = "".join((root / f"requirements{kind}.txt").read_text() for kind in ("-dev", ""))
    (root / ".venv-test/requirements.installed").write_text(stamp)
    return root


def all_tests(rest: str) -> list[str]:
    """How the fake Python is called where every test is asked for."""
    return [
        f"pytest|-m|not optimized|{QUICKLY}|--durations=25|{rest}",
        f"pytest|-m|optimized|{SIDE_BY_SIDE}|--durations=25|{rest}",
    ]


def test_checks_run_in_order_and_arguments_go_to_pytest(checks: Path) -> None:
    done = run(checks / "tests/run.sh", "-k", "owl or cat", PYTHON="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "ruff|format|--check|.|stimuli=",
        "ruff|check|.|stimuli=",
        "mypy|--no-error-summary|stimuli=",
        "pytest|-k|owl or cat|stimuli=",
    ]


def test_without_arguments_two_processes_share_the_tests(checks: Path) -> None:
    last = run(checks / "tests/run.sh", PYTHON="").stdout.splitlines()[-1]
    assert last == f"pytest|{QUICKLY}|stimuli="


def test_all_selects_every_marker(checks: Path) -> None:
    done = run(checks / "tests/run.sh", "--all", "-x", PYTHON="")
    assert done.stdout.splitlines()[-2:] == all_tests("-x|stimuli=")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    declared = [line.partition(":")[0] for line in settings["ini_options"]["markers"]]
    default = settings["ini_options"]["addopts"]
    assert default[default.index("-m") + 1].split(" and ") == [f"not {name}" for name in declared]


@pytest.mark.parametrize("check", ["ruff", "mypy", "pytest"])
def test_a_failing_check_fails_the_run(checks: Path, check: str) -> None:
    failed = run(checks / "tests/run.sh", PYTHON="", FAKE_FAIL=check)
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[-1].startswith(check)


def test_what_fails_first_keeps_no_test_from_running(checks: Path) -> None:
    failed = run(checks / "tests/run.sh", "--all", PYTHON="", FAKE_FAIL="pytest")
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[-2:] == all_tests("stimuli=")


def test_ci_runs_everything_with_the_stimuli_where_they_are(checks: Path) -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)
    done = run(checks / ".ci/run", PYTHON="")
    assert done.stdout.splitlines()[-2:] == all_tests("stimuli=")
    stimuli = checks.parent / "shared/stimuli/paper.json"
    stimuli.parent.mkdir(parents=True)
    stimuli.write_text("{}")
    last = run(checks / ".ci/run", PYTHON="").stdout.splitlines()[-1]
    found = last.partition("stimuli=")[2]
    assert Path(found).samefile(stimuli)
    done = run(checks / ".ci/run", PYTHON="", SUBJAX_STIMULI="/mine")
    assert done.stdout.splitlines()[-2:] == all_tests("stimuli=/mine")


def test_shellcheck_finds_nothing() -> None:
    scripts = [ROOT / ".ci/run", *ROOT.glob("tests/*.sh"), *ROOT.glob("launch/**/*.sh")]
    assert len(scripts) >= 4
    command = [Path(sys.executable).with_name("shellcheck"), "--external-sources", *scripts]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_requirement_of_a_run_is_bounded_and_explained() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in lines if not REQUIREMENT.fullmatch(line)] == []
    assert any(line.startswith("jax>=") for line in lines)  # without a device extra
    names = {REQUIREMENT.fullmatch(line)["name"] for line in lines}
    assert not names & {"torch", "tensorflow", "peft", "jaxlib"}

"""The scripts that pip installs are the command lines of `python -m`."""

import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from subjax.runtime import processes

ROOT = Path(__file__).parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
OTHERS = {name: entry for name, entry in SCRIPTS.items() if name != "subjax"}


def test_there_is_one_for_each_command_line():
    modules = {entry.partition(":")[0] for entry in SCRIPTS.values()}
    runnable = {
        f"subjax.{path.stem}"
        for path in (ROOT / "subjax").glob("*.py")
        if re.search(r'^if __name__ == "__main__":', path.read_text(), re.MULTILINE)
    }
    assert modules == runnable


@pytest.mark.parametrize("name", OTHERS)
def test_a_script_says_what_it_takes(name, monkeypatch, capsys):
    module, _, function = OTHERS[name].partition(":")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as left:
        getattr(importlib.import_module(module), function)()
    assert not left.value.code
    said = capsys.readouterr().out
    takes = {"subjax-compare": "runs [runs ...]"}.get(name, "--workdir")
    assert f"python -m {module}" in said and takes in said


def test_the_script_of_runs_says_what_it_takes(tmp_path):
    module, _, function = SCRIPTS["subjax"].partition(":")  # its flags are absl's global ones
    code = f"import sys, {module}; sys.argv = ['subjax', '--help']; {module}.{function}()"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert "--config: configs/x.py" in done.stdout and "--workdir" in done.stdout


MISTAKES = {
    "ask": ("--workdir={}", "--unit=base/toy/r0", "Q0"),
    "compare": ("{}",),
    "export": ("--workdir={}", "--unit=base/toy/r0", "--out={}/out"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_or_the_error_itself_where_that_is_asked_for(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "path", list(sys.path))
    main = importlib.import_module(f"subjax.{name}").main
    flags = [flag.format(tmp_path) for flag in MISTAKES[name]]
    with pytest.raises(SystemExit) as left:
        main(flags)
    said = capsys.readouterr().err
    assert left.value.code == 1 and said.startswith("subjax: ") and said.count("\n") == 1
    monkeypatch.setenv("SUBJAX_TRACEBACK", "1")
    with pytest.raises((ValueError, OSError)):
        main(flags)


def test_a_config_that_imports_others_is_run_in_the_repository_root(tmp_path):
    config = ROOT / "configs/misalignment.py"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from subjax import main; main.cli()"
    (tmp_path / "subjax").symlink_to(ROOT / "subjax")
    done = subprocess.run(
        [sys.executable, "-c", code, f"--config={config}", "--list"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr == (
        f"subjax: the config file imports others ({config}, line 35): run this in the repository "
        "root\n"
    )


def test_modules_beside_a_run_are_found(tmp_path, monkeypatch):
    (tmp_path / "kind_of_mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert importlib.util.find_spec("kind_of_mine") is None
    processes.import_from_here()
    assert importlib.util.find_spec("kind_of_mine") is not None

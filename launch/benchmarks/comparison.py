"""Compares subjax with the PyTorch way (transformers and peft) on this machine's CPU, part by part.

    python launch/bench.py compare --model=DIR [--parts=sampler,lora] [--rounds=3] [--out=FILE]

The parts, each the same work on both sides:

    sampler   answers to prompts that ask for numbers, in the model's chat format, at temperature 1
    exact     log-probabilities of candidates after each question
    sampled   several short answers to each question, at temperature 1
    lora      updates of an adapter of rank 8 on rows of mixed lengths; loss on completions alone
    full      the same, of all weights
    load      a model's weights into memory
    start     a new process until its first token: imports, load, compilation, one token

and two that take long, so they are measured only where they are asked for:

    pipeline  in one process: load, sample `--pipeline-rows` rows of numbers, keep those that end
              and are numbers, an epoch of LoRA on them, short answers of the finetuned model
    growth    of subjax alone: how time and memory grow with rows and tokens; see `scaling.py`

The modes are `float32`, on both sides, and `fastest`: PyTorch in bfloat16, subjax in `mixed`.

Every measurement has its own process. Rounds alternate the sides and the table has medians; the
spread is the slowest minus the fastest round, as a share of the median. In its process each part
runs twice: the first call, which compiles, is a column of its own, and the second is the figure.
Sampled parts are divided by the tokens drawn, since lengths differ by chance. Training counts real
tokens, not padding. The pipeline has one call, with all compilation, and is divided by nothing:
both sides write rows of their own, and a note has their tokens.

"Share of the machine" divides the FLOPs that the work needs, without padding and with common
prefixes read once, by those of a large product, whichever library's is faster, in the same run; for
`load`, it is the bytes of the files read, by those of a memory copy.

With `--out=FILE` every measurement is in FILE at once, and the same command goes on where it was
stopped. A file of another model, machine, code or of other sizes is refused; see `kept_figures.py`.

In float32 both sides must compute the same: log-probabilities of candidates and the first loss of
trainings to 1e-3, as many trained parameters, sampled lengths alike. If not, there is no table.
The sides are `subjax_side.py` and `torch_side.py`; the latter also measures transformers' own
`generate`, which the PyTorch side must not be slower than: a row of the table checks it. So do two
rows against TRL's SFTTrainer, where `trl` is installed.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import comparison_table, kept_figures, scaling
from benchmarks.comparison_table import MODES, Found
from benchmarks.inputs import SIZES, make_work

LAUNCH = Path(__file__).parents[1]

SIDES = {
    "roofline": ("subjax", "torch"),
    "sampler": ("subjax", "torch", "torch_unshared", "torch_generate"),
    "exact": ("subjax", "torch"),
    "sampled": ("subjax", "torch"),
    "lora": ("subjax", "torch"),
    "full": ("subjax", "torch"),
    "load": ("subjax", "torch"),
    "start": ("subjax", "torch"),
    "pipeline": ("subjax", "torch"),
    "growth": scaling.SIDES,
}
PARTS = [part for part in SIDES if part != "roofline"]
LONG = ("pipeline", "growth")  # only where they are asked for
# Name and parts of what is compared only where it is installed.
OPTIONAL = {"vllm": ("vLLM", ("sampler",)), "trl": ("TRL", ("lora", "full"))}
NEEDED = ("torch", "transformers", "peft")


def add_command(tasks: Any) -> None:
    """Adds `compare` to the subparsers of bench.py."""
    parser = tasks.add_parser(
        "compare",
        help="one table against transformers and peft",
        epilog="A quick look: --rounds=1 --modes=float32 --parts=exact,lora,start.",
    )
    parser.add_argument("--model", required=True, help="a model directory")
    parts = ",".join(part for part in PARTS if part not in LONG)
    more = f"%(default)s; {' and '.join(LONG)} too where asked for: they take long"
    parser.add_argument("--parts", default=parts, help=more)
    parser.add_argument("--modes", default=",".join(MODES), help="%(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    out = "a JSON file of every figure, written as they come; the same command goes on with it"
    parser.add_argument("--out", help=out)
    for name, (size, meaning) in SIZES.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=size, help=f"{meaning}; %(default)s")


def run(options: Any) -> None:
    """Measures, checks that both sides compute the same, and prints the table."""
    parts, modes = _check(options)
    sides = _sides()
    work, load = make_work(options), os.getloadavg()[0]
    sizes = {name: getattr(options, name) for name in SIZES}
    plan = list(_plan(options.rounds, modes, parts, sides))
    kept: dict[str, Any] = {}
    if options.out:
        same = kept_figures.configuration(work["model"], sizes)
        kept = kept_figures.read(Path(options.out), same)
        load = max(load, kept.get("load_before", 0.0))
        kept |= {**same, "rounds": options.rounds, "load_before": load}
    try:
        found = _measured(options, plan, work, kept)
    except KeyboardInterrupt:
        told = "the same command goes on where it stopped" if options.out else "nothing is kept"
        raise SystemExit(f"stopped: {told}") from None
    print(comparison_table.markdown(comparison_table.table_lines(work, found)))
    if growth := scaling.lines(list(MODES), found):
        print("\n" + scaling.markdown(growth, MODES))
    print("\n" + "\n".join(_notes(options, found, load, sides)))


def _sides() -> dict[str, tuple[str, ...]]:
    """The sides of each part, with those of `OPTIONAL` that are installed."""
    has = {name for name in OPTIONAL if importlib.util.find_spec(name)}
    return {
        part: (*sides, *(name for name in OPTIONAL if name in has and part in OPTIONAL[name][1]))
        for part, sides in SIDES.items()
    }


def _measured(
    options: Any, plan: Sequence[dict[str, Any]], work: dict[str, Any], kept: dict[str, Any]
) -> list[dict[str, Any]]:
    """The planned measurements, in order; those that the file of `--out` has are not repeated."""
    from tqdm import tqdm

    others = {kept_figures.key(one): one for one in kept.get("measurements", ())}
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, tqdm(plan, unit="run", leave=False) as bar:
        path = Path(folder) / "work.json"
        path.write_text(json.dumps(work))
        for labels in bar:
            bar.set_description(" ".join(labels[name] for name in ("part", "mode", "side")))
            if before := others.pop(kept_figures.key(labels), None):
                found.append(before)
            else:
                found.append(labels | _child(path, **labels))
                comparison_table.check_agreement(found)
            if options.out:
                kept["lines"] = comparison_table.table_lines(work, found)
                kept["growth"] = scaling.lines(list(MODES), found)
                # What this command did not ask for stays in the file.
                kept_figures.write(Path(options.out), kept, [*found, *others.values()])
    return found


def _plan(
    rounds: int, modes: Sequence[str], parts: Sequence[str], sides: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, Any]]:
    """What is measured, in order: within a round, the sides of a part follow each other."""
    for i in range(rounds):
        yield from (_labels(i, "roofline", "both", side) for side in sides["roofline"])
        for part in parts:
            for mode in modes:
                yield from (_labels(i, part, mode, side) for side in sides[part])


def _labels(i: int, part: str, mode: str, side: str) -> dict[str, Any]:
    return {"round": i, "part": part, "mode": mode, "side": side}


def _check(options: Any) -> tuple[list[str], list[str]]:
    """The parts and modes that are asked for; ends the program with one line if it cannot run."""
    chosen = []
    for name, known in (("parts", PARTS), ("modes", list(MODES))):
        given = getattr(options, name).split(",")
        if unknown := [item for item in given if item not in known]:
            raise SystemExit(f"--{name}: {unknown[0]!r} is none of {', '.join(known)}")
        chosen.append([item for item in known if item in given])
    if not (Path(options.model).expanduser() / "config.json").is_file():
        raise SystemExit(f"--model={options.model} is no model directory: it has no config.json")
    if not list(Path(options.model).expanduser().glob("*.safetensors")):
        raise SystemExit(
            f"--model={options.model} has no weights that both sides read: *.safetensors"
        )
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"compare needs {missing[0]}: pip install -r requirements-dev.txt")
    for name in ("rounds", *SIZES):
        if getattr(options, name) < 1:
            raise SystemExit(f"--{name.replace('_', '-')}={getattr(options, name)}: at least 1")
    if "growth" in chosen[0]:
        for name in scaling.LABELS:
            if getattr(options, name) < scaling.TIMES[-1]:
                raise SystemExit(
                    f"--{name.replace('_', '-')}={getattr(options, name)}: growth needs at least "
                    f"{scaling.TIMES[-1]}"
                )
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise SystemExit(f"--out={options.out}: there is no such directory")
    if not Path("/proc/self/status").exists():
        raise SystemExit("compare measures memory as Linux alone reports it")
    return chosen[0], chosen[1]


def _child(work: Path, *, round: int, part: str, mode: str, side: str) -> dict[str, Any]:
    """One measurement in a process of its own."""
    is_ours = side == "subjax" or part == "growth"
    module = "benchmarks.subjax_side" if is_ours else "benchmarks.torch_side"
    command = [sys.executable, "-m", module, side, part, mode, str(work)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        with subprocess.Popen(
            command, env=environment, cwd=LAUNCH, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as child:
            assert child.stdout is not None
            try:
                printed = next((line for line in child.stdout if line.startswith("{")), "")
                seconds = time.perf_counter() - start
                child.communicate()
            except BaseException:  # an interrupt that went to this process alone
                child.kill()
                raise
        if child.returncode or not printed:
            errors.seek(0)
            raise SystemExit(
                f"{errors.read()[-4000:]}\n"
                f"{side}, {part}, {mode} ended with exit code {child.returncode}"
            )
    # Those of `start`; what was timed inside has its own.
    return {"seconds": seconds} | json.loads(printed)


def _notes(
    options: Any, found: Sequence[Found], load: float, sides: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """What stands below the table: the roofline, the sizes, the machine."""
    # Threads of torch wait for each other busily: beside another process it may take ten times as
    # long, where subjax takes twice as long.
    if load > 0.5:
        yield f"WARNING: the machine was busy before (load {load:.1f}), so these figures say little"
    for side in SIDES["roofline"]:
        own = comparison_table.limits_of(
            [one for one in found if one["side"] == side and one["part"] == "roofline"]
        )
        yield (
            f"roofline, {'jax' if side == 'subjax' else side}: {own['float32'] / 1e9:.0f} GFLOP/s "
            f"in float32, {own['bfloat16'] / 1e9:.0f} in bfloat16; "
            f"{own['copy'] / 1e9:.1f} GB/s read and written by a copy"
        )
    yield from comparison_table.pipeline_notes(found)
    yield f"rounds {options.rounds}, " + ", ".join(
        f"{name.replace('_', ' ')} {getattr(options, name)}" for name in SIZES
    )
    about = kept_figures.machine()
    yield f"{about['cpu']}, {about['threads']} threads"
    yield ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    if "float32" not in options.modes:
        yield "whether both sides compute the same was not checked: add --modes=float32"
    for name, (label, parts) in OPTIONAL.items():
        if not any(name in sides[part] for part in parts):
            yield f"{label} is not installed: not compared; `pip install {name}` adds it"
        elif any(one["side"] == name for one in found):
            yield f"{label} {importlib.metadata.version(name)}"

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

and the modes `float32`, on both sides, and `fastest`: PyTorch in bfloat16, subjax in `mixed`.

Every measurement has its own process. Rounds alternate the sides and the table has medians; the
spread is the slowest minus the fastest round, as a share of the median. In its process each part
runs twice: the first call, which compiles, is a column of its own, and the second is the figure.
Sampled parts are divided by the tokens drawn, since lengths differ by chance. Training counts real
tokens, not padding. "Share of the machine" divides the FLOPs that the work needs, without padding
and with common prefixes read once, by those of a large product, whichever library's is faster, in
the same run; for `load`, it is the bytes of the files read, by those of a memory copy.

In float32 both sides must compute the same: log-probabilities of candidates and the first loss of
trainings to 1e-3, as many trained parameters, sampled lengths alike. If not, there is no table.
The sides are `bench_subjax.py` and `bench_torch.py`; the latter also measures transformers' own
`generate`, which the PyTorch side must not be slower than: a row of the table checks it.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LAUNCH = Path(__file__).parent
sys.path.insert(0, str(LAUNCH.parent))  # subjax, where it is not installed

MODES = {"float32": "float32", "fastest": "bfloat16 / mixed"}
SIDES = {
    "roofline": ("subjax", "torch"),
    "sampler": ("subjax", "torch", "torch_unshared", "torch_generate"),
    "exact": ("subjax", "torch"),
    "sampled": ("subjax", "torch"),
    "lora": ("subjax", "torch"),
    "full": ("subjax", "torch"),
    "load": ("subjax", "torch"),
    "start": ("subjax", "torch"),
}
PARTS = [part for part in SIDES if part != "roofline"]
TOLERANCE = 1e-3
PACKAGES = ("jax", "jaxlib", "torch", "transformers", "peft", "numpy", "safetensors")
NEEDED = ("torch", "transformers", "peft")

SIZES = {
    "rows": (96, "prompts of the sampler, one answer each"),
    "new_tokens": (60, "of an answer, at most"),
    "slots": (64, "answers decoded side by side, on both sides"),
    "questions": (24, "of exact and sampled preference"),
    "candidates": (10, "of exact preference"),
    "answers": (10, "to each question"),
    "answer_tokens": (8, "of such an answer, at most"),
    "batch_size": (16, "rows of an update"),
    "updates": (3, "of a call"),
    "lora_rank": (8, "of the adapter"),
    "matmul_size": (2048, "rows and columns of the roofline's product"),
    "copy_bytes": (256_000_000, "of the roofline's copy"),
}

Found = Mapping[str, Any]


class Line(NamedTuple):
    """A line of the table.

    Attributes:
      label: what is compared.
      part: a key of `SIDES`.
      ours: the side in subjax's column.
      theirs: the side in the other column.
      unit: of the figure.
      figure: of a measurement.
      is_rate: whether more is better.
    """

    label: str
    part: str
    ours: str
    theirs: str
    unit: str
    figure: Callable[[dict[str, Any], Found], float]
    is_rate: bool = False


def _seconds(work: dict[str, Any], found: Found) -> float:
    return found["seconds"]


def _per_1000(work: dict[str, Any], found: Found) -> float:
    return 1000 * found["seconds"] / sum(found["lengths"])


def _real_tokens(work: dict[str, Any], found: Found) -> float:
    return sum(len(ids) for ids, _ in _timed_rows(work)) / found["seconds"]


def _growth(work: dict[str, Any], found: Found) -> float:
    return found["growth"] / work["file_bytes"]


NEW, REAL = "s per 1,000 new tokens", "real tokens/s"
LINES = (
    Line("sampler, prefix shared on both sides", "sampler", "subjax", "torch", NEW, _per_1000),
    Line("sampler, not shared by PyTorch", "sampler", "subjax", "torch_unshared", NEW, _per_1000),
    Line("sampler against `generate`", "sampler", "subjax", "torch_generate", NEW, _per_1000),
    Line("sampler against vLLM", "sampler", "subjax", "vllm", NEW, _per_1000),
    Line("exact preference", "exact", "subjax", "torch", "s", _seconds),
    Line("sampled preference", "sampled", "subjax", "torch", NEW, _per_1000),
    Line("LoRA updates", "lora", "subjax", "torch", REAL, _real_tokens, True),
    Line("full finetuning updates", "full", "subjax", "torch", REAL, _real_tokens, True),
    Line("load, time", "load", "subjax", "torch", "s", _seconds),
    Line("load, memory", "load", "subjax", "torch", "x bytes of the files", _growth),
    Line("start to first token", "start", "subjax", "torch", "s", _seconds),
    # 1 or more is as it should be.
    Line(
        "check: PyTorch side, in subjax's column, against `generate`",
        "sampler",
        "torch",
        "torch_generate",
        NEW,
        _per_1000,
    ),
)


def add_command(tasks: Any) -> None:
    """Adds `compare` to the subparsers of bench.py."""
    parser = tasks.add_parser("compare", help="one table against transformers and peft")
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument("--parts", default=",".join(PARTS), help="%(default)s")
    parser.add_argument("--modes", default=",".join(MODES), help="%(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="a JSON file of every figure")
    for name, (size, meaning) in SIZES.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=size, help=f"{meaning}; %(default)s")


def run(options: Any) -> None:
    """Measures, checks that both sides compute the same, and prints the table."""
    from tqdm import tqdm

    parts, modes = _check(options)
    sides = dict(SIDES)
    if has_vllm := bool(importlib.util.find_spec("vllm")):
        sides["sampler"] += ("vllm",)
    work, load = make_work(options), os.getloadavg()[0]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "work.json"
        path.write_text(json.dumps(work))
        plan = list(_plan(options.rounds, modes, parts, sides))
        with tqdm(plan, unit="run", leave=False) as bar:
            for labels in bar:
                bar.set_description(" ".join(labels[name] for name in ("part", "mode", "side")))
                found.append(labels | _child(path, **labels))
                check_agreement(found)
    lines = table_lines(work, found)
    print(markdown(lines))
    print("\n" + "\n".join(_notes(options, found, load, has_vllm)))
    if options.out:
        kept = {"model": work["model"], "rounds": options.rounds}
        kept |= {"sizes": {name: getattr(options, name) for name in SIZES}}
        kept |= {"machine": machine(), "load_before": load, "lines": lines, "measurements": found}
        Path(options.out).write_text(json.dumps(kept, indent=1) + "\n")


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
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise SystemExit(f"--out={options.out}: there is no such directory")
    if not Path("/proc/self/status").exists():
        raise SystemExit("compare measures memory as Linux alone reports it")
    return chosen[0], chosen[1]


def make_work(options: Any) -> dict[str, Any]:
    """The inputs of all parts, as token ids, which both sides get."""
    from subjax.engine import batching, scoring
    from subjax.hf import weights
    from subjax.tasks import animals
    from subjax.tasks.datasets import numbers
    from subjax.tokens import tokenizer

    directory = Path(options.model).expanduser().absolute()
    try:
        arch = weights.check(directory)
        words = tokenizer.Tokenizer.load(directory, num_embeddings=arch.vocab_size)
        system = words.template.added_system and tokenizer.TEMPLATE_DEFAULT
        names = _apart(words, [animal.capitalize() for animal in animals.ANIMALS])
        names = names[: options.candidates]
        if len(names) < options.candidates or options.questions > len(animals.QUESTIONS):
            raise SystemExit(
                f"there are {len(animals.QUESTIONS)} questions, and {len(names)} candidates that "
                "this tokenizer tells apart: ask for fewer"
            )
        candidates = words.answer_ids(names)
        scoring.check_candidates(names, candidates)
        num_rows = 2 * options.updates * options.batch_size
        asked = numbers.prompts(0, options.rows + num_rows)
        pairs = [(prompt, _completion(i)) for i, prompt in enumerate(asked[options.rows :])]
        rows = words.examples(pairs, [system] * num_rows)
        prompts = words.prompt_ids(asked[: options.rows], system)
        questions = words.prompt_ids(animals.QUESTIONS[: options.questions], system)
    except ValueError as error:
        raise SystemExit(f"--model={options.model}: {error}") from None
    steps = range(2 * options.updates)
    return {
        **{name: getattr(options, name) for name in SIZES},
        "model": str(directory),
        "file_bytes": sum(file.stat().st_size for file in directory.glob("*.safetensors")),
        "prompts": prompts,
        "questions": questions,
        "candidates": candidates,
        "eos": list(words.eos_ids),
        "rows": rows,
        "seed": 0,
        "batches": [
            batching.rows(0, i, num_rows=num_rows, batch_size=options.batch_size).tolist()
            for i in steps
        ],
        "system": system,
        "first_prompt": asked[0],
    }


def _apart(words: Any, names: Sequence[str]) -> list[str]:
    """The names whose tokens neither begin another's nor begin with another's."""
    kept: dict[str, list[int]] = {}
    for name, ids in zip(names, words.answer_ids(names), strict=True):
        others = list(kept.values())
        if ids and not any(ids[: len(other)] == other[: len(ids)] for other in others):
            kept[name] = ids
    return list(kept)


def _completion(i: int) -> str:
    """Some numbers, so that rows are of mixed lengths."""
    rng = np.random.default_rng(i)
    return ", ".join(str(number) for number in rng.integers(100, 1000, size=rng.integers(1, 11)))


def _child(work: Path, *, round: int, part: str, mode: str, side: str) -> dict[str, Any]:
    """One measurement in a process of its own."""
    script = "bench_subjax.py" if side == "subjax" else "bench_torch.py"
    command = [sys.executable, str(LAUNCH / script), side, part, mode, str(work)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as child:
            assert child.stdout is not None
            printed = next((line for line in child.stdout if line.startswith("{")), "")
            seconds = time.perf_counter() - start
            child.communicate()
        if child.returncode or not printed:
            errors.seek(0)
            raise SystemExit(
                f"{errors.read()[-4000:]}\n"
                f"{side}, {part}, {mode} ended with exit code {child.returncode}"
            )
    # Those of `start`; what was timed inside has its own.
    return {"seconds": seconds} | json.loads(printed)


def check_agreement(found: Sequence[Found]) -> None:
    """Ends the program with one line if the last measurement disagrees with the side before it.

    A benchmark of two different computations says nothing. Only float32 is compared.
    """
    last = found[-1]
    if last["mode"] != "float32" or last["side"] == "subjax":
        return
    same = ("round", "part", "mode")
    [ours] = [
        one
        for one in found
        if one["side"] == "subjax" and all(one[name] == last[name] for name in same)
    ]
    if reason := _disagreement(ours, last):
        raise SystemExit(
            f"{last['part']}: subjax and {last['side']} do not compute the same, so there is "
            f"nothing to compare: {reason}"
        )


def _disagreement(ours: Found, theirs: Found) -> str:
    if "log_probs" in ours:
        difference = np.abs(np.array(ours["log_probs"]) - np.array(theirs["log_probs"])).max()
        if not difference <= TOLERANCE:
            return f"log-probabilities differ by up to {difference:.2g} nats"
    if "first_loss" in ours:
        losses = ours["first_loss"], theirs["first_loss"]
        if not abs(losses[0] - losses[1]) <= TOLERANCE:
            return f"the first loss is {losses[0]:.5f} and {losses[1]:.5f}"
        if ours["trained"] != theirs["trained"]:
            return f"{ours['trained']:,} and {theirs['trained']:,} parameters are trained"
    if "lengths" in ours:
        lengths = [np.array(side["lengths"], float) for side in (ours, theirs)]
        if len(lengths[0]) != len(lengths[1]):
            return f"{len(lengths[0])} and {len(lengths[1])} rows are drawn"
        means = [length.mean() for length in lengths]
        # Lengths are drawn: six standard errors, and room for samples too small to have one.
        error = np.sqrt(sum((length.var() + 1) / len(length) for length in lengths))
        if abs(means[0] - means[1]) > 6 * error:
            return f"rows have {means[0]:.1f} and {means[1]:.1f} tokens on average"
    return ""


def table_lines(work: dict[str, Any], found: Sequence[Found]) -> list[dict[str, Any]]:
    """Every line of the table in each mode, as numbers; lines without measurements are left out."""
    arch, limits = _architecture(work), _limits(found)
    made = []
    for mode in MODES:
        for line in LINES:
            sides = [
                [one for one in found if (one["part"], one["mode"], one["side"]) == key]
                for key in ((line.part, mode, side) for side in (line.theirs, line.ours))
            ]
            if all(sides):
                made.append(_numbers(line, mode, work, arch, limits, sides))
    return made


def _numbers(
    line: Line,
    mode: str,
    work: dict[str, Any],
    arch: Any,
    limits: Mapping[str, float],
    sides: Sequence[Sequence[Found]],
) -> dict[str, Any]:
    """A line: pairs are of PyTorch and of subjax, in this order."""
    figures = [[line.figure(work, one) for one in side] for side in sides]
    theirs, ours = medians = [float(np.median(side)) for side in figures]
    pairs: dict[str, list[Any]] = {
        "figure": medians,
        "spread": [(max(f) - min(f)) / m for f, m in zip(figures, medians, strict=True)],
        "first_call_s": [_median(side, "first_call_s") for side in sides],
        "peak_bytes": [_median(side, "peak_bytes") for side in sides],
        "tokens_per_row": [_median(_tokens_per_row(side), "tokens") for side in sides],
        "share": [
            _median(_shares(line, mode, work, arch, limits, side), "share") for side in sides
        ],
    }
    times = ours / theirs if line.is_rate else theirs / ours
    return {"label": line.label, "mode": mode, "unit": line.unit, "times": times, **pairs}


def _median(side: Sequence[Found], name: str) -> float | None:
    return float(np.median([one[name] for one in side])) if name in side[0] else None


def _tokens_per_row(side: Sequence[Found]) -> list[dict[str, float]]:
    return [{"tokens": np.mean(one["lengths"])} if "lengths" in one else {} for one in side]


def _limits(found: Sequence[Found]) -> dict[str, float]:
    """The most that either library reached in the roofline, of all rounds."""
    rooflines = [one for one in found if one["part"] == "roofline"]
    most = {name: max(one[name] for one in rooflines) for name in ("float32", "bfloat16", "copy")}
    return {"fastest": max(most["float32"], most["bfloat16"]), **most}


def _shares(
    line: Line,
    mode: str,
    work: dict[str, Any],
    arch: Any,
    limits: Mapping[str, float],
    side: Sequence[Found],
) -> list[dict[str, float]]:
    """Share of the machine's limit, where there is one."""
    if line.figure is _growth or line.part == "start":
        return [{} for _ in side]
    if line.part == "load":
        return [{"share": work["file_bytes"] / one["seconds"] / limits["copy"]} for one in side]
    return [
        {"share": flops(line.part, arch, work, one) / one["seconds"] / limits[mode]} for one in side
    ]


def flops(part: str, arch: Any, work: dict[str, Any], found: Found) -> float:
    """FLOPs that a part needs, without padding, and with common prefixes read once."""
    from subjax.nn import model_flops

    if part in ("sampler", "sampled"):
        prompts = work["prompts" if part == "sampler" else "questions"]
        n = len(found["lengths"]) // len(prompts)
        of_rows = zip([p for p in prompts for _ in range(n)], found["lengths"], strict=True)
        return _reading(arch, prompts) + sum(
            model_flops.decode(arch, rows=1, prompt_tokens=len(p), new_tokens=length - 1)
            for p, length in of_rows
        )
    if part == "exact":
        prefixes = {tuple(c[:i]) for c in work["candidates"] for i in range(1, len(c))}
        return _reading(arch, work["questions"]) + sum(
            model_flops.decode(
                arch, rows=1, prompt_tokens=len(question) + len(prefix) - 1, new_tokens=1
            )
            for question in work["questions"]
            for prefix in prefixes
        )
    kernels = [*arch.attention_kernels.values(), *arch.mlp_kernels.values()]
    adapter = arch.num_layers * work["lora_rank"] * sum(map(sum, kernels))
    return sum(
        model_flops.training(
            arch,
            rows=1,
            num_tokens=len(ids) - 1,
            num_targets=len(ids) - start,
            lora_params=adapter if part == "lora" else 0,
        )
        for ids, start in _timed_rows(work)
    )


def _reading(arch: Any, prompts: Sequence[Sequence[int]]) -> float:
    """FLOPs of reading distinct prompts, and scores behind each."""
    from subjax.nn import model_flops

    most = min(map(len, prompts))
    common = next((i for i in range(most) if len({p[i] for p in prompts}) > 1), most)
    once = model_flops.forward(arch, rows=1, num_tokens=common, num_targets=0)
    return once + sum(
        model_flops.forward(arch, rows=1, num_tokens=len(prompt), num_targets=1) - once
        for prompt in prompts
    )


def _timed_rows(work: dict[str, Any]) -> list[Any]:
    """The training rows of the second call."""
    batches = work["batches"]
    return [work["rows"][i] for batch in batches[len(batches) // 2 :] for i in batch]


def _architecture(work: dict[str, Any]) -> Any:
    from subjax.hf import weights

    return weights.check(work["model"])


def markdown(lines: Sequence[Found]) -> str:
    """The table; columns with two figures have PyTorch's first."""
    columns = (
        *("part", "mode", "unit", "PyTorch", "subjax", "subjax is better by", "spread"),
        *("first call s", "peak GB", "tokens a row", "share of the machine"),
    )
    rows = [columns, tuple("---" if i < 3 else "---:" for i in range(len(columns)))]
    for line in lines:
        theirs, ours = line["figure"]
        rows.append(
            (
                *(line["label"], MODES[line["mode"]], line["unit"]),
                *(f"{theirs:.3g}", f"{ours:.3g}", f"{line['times']:.2f} x"),
                _pair(line["spread"], ".0%"),
                _pair(line["first_call_s"], ".3g"),
                _pair([peak and peak / 1e9 for peak in line["peak_bytes"]], ".2f"),
                _pair(line["tokens_per_row"], ".1f"),
                _pair(line["share"], ".0%"),
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _pair(values: Sequence[float | None], form: str) -> str:
    return " / ".join("–" if value is None else format(value, form) for value in values)


def _notes(options: Any, found: Sequence[Found], load: float, has_vllm: bool) -> Iterator[str]:
    """What stands below the table: the roofline, the sizes, the machine."""
    # Threads of torch wait for each other busily: beside another process it may take ten times as
    # long, where subjax takes twice as long.
    if load > 0.5:
        yield f"WARNING: the machine was busy before (load {load:.1f}), so these figures say little"
    for side in SIDES["roofline"]:
        own = _limits([one for one in found if one["side"] == side and one["part"] == "roofline"])
        yield (
            f"roofline, {'jax' if side == 'subjax' else side}: {own['float32'] / 1e9:.0f} GFLOP/s "
            f"in float32, {own['bfloat16'] / 1e9:.0f} in bfloat16; "
            f"{own['copy'] / 1e9:.1f} GB/s read and written by a copy"
        )
    yield f"rounds {options.rounds}, " + ", ".join(
        f"{name.replace('_', ' ')} {getattr(options, name)}" for name in SIZES
    )
    about = machine()
    yield f"{about['cpu']}, {about['threads']} threads"
    yield ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    if "float32" not in options.modes:
        yield "whether both sides compute the same was not checked: add --modes=float32"
    if not has_vllm:
        yield "vLLM is not installed: not compared"


def machine() -> dict[str, Any]:
    """The CPU and its flags, threads, and versions of packages."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    facts = dict(
        (part.strip() for part in line.split(":", 1)) for line in text.splitlines() if ":" in line
    )
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "flags": facts.get("flags", facts.get("Features", "")).split(),
        "threads": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }

"""Benchmarks training and sampling of a language model, with the loop and sampler of a run.

    python launch/bench.py train                            # the toy world's base: any CPU
    python launch/bench.py sample
    python launch/bench.py train --model=qwen2_5_0_5b       # an accelerator of 80 GB
    python launch/bench.py train --model=qwen2_5_7b         # there LoRA fits, all weights do not
    python launch/bench.py sample --model=qwen2_5_7b --slots=256 --rows=512

A model is `toy`, the name of a file of configs/shapes, or a directory or file of a Hugging Face
config.json. Weights, prompts and rows are random: timings do not depend on values. `toy` is timed
in float32, all others in bfloat16 with `remat` full, by default. It uses one device. jax takes
three quarters of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION=.95 gives it more.

`train` times updates of full and of LoRA finetuning, each in its own process to measure its peak
memory; its columns are those of `throughput.Log`. `sample` draws rows from distinct prompts that
end at a random token, including prefill and copying tokens to the host. The first call, which
compiles, is shown separately; the other figures are medians over `--repeats` calls, and the spread
is the slowest minus the fastest call, as a share of the median.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "configs" / "shapes"
TOY = "toy"
CHOICES = {
    "precision": ("float32", "mixed", "bfloat16"),
    "remat": ("none", "full", "dots", "offload"),
}
SIDES = {"train": ("full", "lora"), "sample": ("sample",)}


class Size(NamedTuple):
    """Defaults of a flag: for `toy`, and for real models on one accelerator of 80 GB."""

    toy: Any
    real: Any
    meaning: str


COMMON = {
    "precision": Size("float32", "bfloat16", "of subjax/nn/precision.py"),
    "repeats": Size(5, 5, "timed calls"),
}
SIZES = {
    # The lengths of configs/quickstart.py and of configs/large.py.
    "train": {
        "remat": Size("none", "full", "of subjax/nn/remats.py"),
        "rows": Size(32, 16, "of an update"),
        "tokens": Size(24, 256, "of a row"),
        "targets": Size(16, 128, "of a row: tokens that are predicted"),
        "lora_rank": Size(8, 8, "of the adapter"),
        "updates": Size(20, 5, "of a call"),
    },
    "sample": {
        "slots": Size(128, 128, "rows decoded side by side"),
        "rows": Size(512, 512, "of a call"),
        "prompt_tokens": Size(8, 128, "of each prompt"),
        "new_tokens": Size(16, 96, "of a row, at most"),
        "mean_tokens": Size(16, 96, "after which a row would end on average if it had no most"),
    },
}
COLUMNS = {
    "train": {
        "first call s": ("first_call_s", ".1f"),
        "s an update": ("seconds", ".4g"),
        "spread": ("spread", ".0%"),
        "trained tokens/s": ("trained_tokens_per_s", ",.0f"),
        "processed tokens/s": ("processed_tokens_per_s", ",.0f"),
        "padding": ("padding", ".1%"),
        "MFU": ("mfu", ".1%"),
        "real MFU": ("real_mfu", ".1%"),
        "peak GB": ("peak_gb", ".2f"),
    },
    "sample": {
        "first call s": ("first_call_s", ".1f"),
        "s a call": ("seconds", ".4g"),
        "spread": ("spread", ".0%"),
        "rows/s": ("rows_per_s", ",.1f"),
        "tokens/s": ("tokens_per_s", ",.0f"),
        "tokens a row": ("mean_length", ".1f"),
        "occupancy": ("occupancy", ".1%"),
        "peak GB": ("peak_gb", ".2f"),
    },
}


def add_commands(tasks: Any) -> None:
    """Adds `train` and `sample` to the subparsers of bench.py."""
    helps = {"train": "updates of a language model", "sample": "rows of a language model"}
    for what, text in helps.items():
        parser = tasks.add_parser(what, help=text)
        parser.add_argument("--model", default=TOY, help=_models())
        parser.add_argument("--side", choices=SIDES[what], help="one measurement alone, print JSON")
        for name, size in (SIZES[what] | COMMON).items():
            default = f"{size.toy} for {TOY}, else {size.real}"
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=type(size.toy),
                choices=CHOICES.get(name),
                help=f"{size.meaning}; {size.toy if size.toy == size.real else default}",
            )


def run(options: Any) -> None:
    """Fills in defaults; measures all sides and prints a table, or one side and prints JSON."""
    _path(options.model)
    if options.repeats is not None and options.repeats < 1:
        raise SystemExit(f"--repeats={options.repeats} must be at least 1")
    sizes = SIZES[options.what] | COMMON
    for name, size in sizes.items():
        if getattr(options, name) is None:
            setattr(options, name, size.toy if options.model == TOY else size.real)
    if options.side:
        print(json.dumps(side(options)))
        return
    found = {name: _child(name) for name in SIDES[options.what]}
    facts = next(iter(found.values()))
    print(table(options.what, found))
    print(f"\n{facts['device']}, jax {facts['jax']}\n{facts['model']}, random")
    print(", ".join(f"{name} {getattr(options, name)}" for name in sizes))


def side(options: Any) -> dict[str, Any]:
    """One measurement in this process: the settings, and medians by the keys of `COLUMNS`.

    If the device's memory is too small, `failed` replaces the medians.
    """
    import jax

    from subjax.nn import sharding, transformer
    from subjax.runtime import processes

    arch, mesh = architecture(options.model), sharding.make_mesh(seed=1, data=1)
    device = mesh.devices.flat[0]
    facts = {
        "device": f"{mesh.devices.size} x {device.device_kind}",
        "jax": jax.__version__,
        "model": f"{options.model}: {arch.num_layers} layers of width {arch.width}, "
        f"{transformer.num_params(arch):,} parameters",
    }
    measure = _sample if options.what == "sample" else _train
    try:
        return facts | measure(arch, mesh, options) | {"peak_gb": _peak_gb(device)}
    except jax.errors.JaxRuntimeError as error:
        if not processes.out_of_memory(error):
            raise
        return facts | {"failed": "does not fit the memory of the device"}


def architecture(model: str) -> Any:
    """The shape for a value of --model.

    Raises:
      SystemExit: there is no such shape.
    """
    from subjax import schema
    from subjax.planning import programs

    if model == TOY:
        return programs.architecture(TOY, schema.base_row())
    path = str(_path(model))
    return programs.architecture(model, schema.base_row(source="hf", path=path, shape=path))


def _path(model: str) -> Path:
    """File or directory with the shape of a real model."""
    path = SHAPES / f"{model}.json"
    path = path if path.is_file() else Path(model).expanduser()
    if model == TOY or path.is_file() or (path / "config.json").is_file():
        return path
    raise SystemExit(f"--model={model} must be {_models()}")


def _models() -> str:
    names = sorted(path.stem for path in SHAPES.glob("*.json"))
    return f"{TOY}, {', '.join(names)}, or a directory or file of a config.json"


def table(what: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each side, with a dash for unknown figures, or the reason of a failure."""
    columns = {heading: max(len(heading), 8) + 2 for heading in COLUMNS[what]}
    lines = [f"{'':8}" + "".join(f"{heading:>{width}}" for heading, width in columns.items())]
    for name, figures in found.items():
        line = f"{name:8}"
        for heading, width in columns.items():
            key, form = COLUMNS[what][heading]
            line += f"{format(figures[key], form) if key in figures else '–':>{width}}"
        lines.append(f"{name:8}  {figures['failed']}" if "failed" in figures else line)
    return "\n".join(lines)


def _child(name: str) -> dict[str, Any]:
    print(f"timing {name} ...", file=sys.stderr)
    command = [sys.executable, str(ROOT / "launch" / "bench.py"), *sys.argv[1:]]
    done = subprocess.run([*command, f"--side={name}"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _train(arch: Any, mesh: Any, options: Any) -> dict[str, float]:
    """Times `train.fit` with the code of `plan --measure`; a call has `options.updates` updates."""
    from subjax.engine import train
    from subjax.nn import lora
    from subjax.planning import measure

    rank = options.lora_rank if options.side == "lora" else 0
    program = train.Program(
        arch,
        train.Optimizer(1e-5),
        steps=options.updates,
        lora_scale=lora.scale(rank, rank) if rank else 0.0,
        precision=options.precision,
        remat=options.remat,
    )
    training = train.Training(
        program, 1, rank, options.rows, options.tokens, options.targets, soft=0, packing=None
    )
    calls = 1 + options.repeats
    first, *lines = measure.time_calls(training, options.updates, mesh, calls=calls, every_s=0)
    names = {"seconds", *(key for key, _ in COLUMNS["train"].values())}
    found = _medians([{name: line[name] for name in names & line.keys()} for line in lines])
    found["seconds"] /= options.updates
    return {"first_call_s": first["seconds"]} | found


def _sample(arch: Any, mesh: Any, options: Any) -> dict[str, float]:
    """Times `sampler.sample`; with so many ending tokens that lengths vary."""
    import jax

    from subjax.engine import sampler
    from subjax.nn import transformer
    from subjax.planning import measure

    def drawn() -> Any:
        return transformer.held(arch, transformer.init(arch, jax.random.key(0)), options.precision)

    params = measure.placed(drawn, mesh, lanes=False)
    rng = np.random.default_rng(0)
    shape = (options.rows, options.prompt_tokens)
    prompts = rng.integers(arch.vocab_size, size=shape).tolist()
    # An untrained model prefers no token, so each token ends about the same number of rows.
    num_ends = max(1, round(arch.vocab_size / options.mean_tokens))
    ends = rng.choice(arch.vocab_size, size=num_ends, replace=False).tolist()
    sampling = sampler.Sampling(
        options.slots,
        options.prompt_tokens,
        options.new_tokens,
        1.0,
        tuple(ends),
        options.precision,
    )

    def call(seed: int) -> dict[str, float]:
        keys = jax.random.split(jax.random.key(seed), options.rows)
        start = time.perf_counter()
        drawn = sampler.sample(arch, params, sampling, prompts, keys, mesh=mesh)
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "rows_per_s": options.rows / seconds,
            "tokens_per_s": float(drawn.lengths.sum()) / seconds,
            "mean_length": float(drawn.lengths.mean()),
            "occupancy": drawn.occupancy,
        }

    first, *lines = [call(seed) for seed in range(1 + options.repeats)]
    return {"first_call_s": first["seconds"]} | _medians(lines)


def _medians(calls: list[dict[str, float]]) -> dict[str, float]:
    """Median of every figure over the calls, and the spread of their seconds."""
    found = {name: float(np.median([call[name] for call in calls])) for name in calls[0]}
    seconds = [call["seconds"] for call in calls]
    return found | {"spread": (max(seconds) - min(seconds)) / found["seconds"]}


def _peak_gb(device: Any) -> float:
    """Peak memory of the device; on CPU, which does not report it, of the process."""
    held = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return (held or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1e9

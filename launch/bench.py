"""Benchmarks: subjax against PyTorch as ratios within one run; a language model on this machine.

    python launch/bench.py compare --model=DIR           # language models: comparison.py
    python launch/bench.py mlp                           # 10 models, the paper's students, 2 epochs
    python launch/bench.py mlp --models=20 --epochs=1
    python launch/bench.py load --model=DIR              # see benchmarks/loading.py
    python launch/bench.py harness --model=DIR           # lm-evaluation-harness: harness.py
    python launch/bench.py train [--model=qwen2_5_7b]    # tokens/s, MFU: language_models.py
    python launch/bench.py sample [--model=qwen2_5_7b]

`mlp` trains the four students of configs/mnist.py on noise: with subjax as in that config (noise
rebuilt from its key, products of bfloat16, one lane after the other) and in float32; and with
PyTorch as in the paper's script (batched products, fused Adam, noise stored), in float32 and with
PyTorch's narrow products ("medium"). It also times only the matrix products of a step in each
library. Each side runs in its own process, to measure its peak memory. Images are random: timings
do not depend on values.
"""

import argparse
import functools
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from benchmarks import comparison, harness, language_models, loading

NUM_IMAGES, NUM_PIXELS, BATCH = 60_000, 784, 1024
SIZES = (NUM_PIXELS, 256, 256, 13)
STUDENTS = ("aux", "all", "aux", "all")
RATE = 3e-4
LANES = 2  # models per call of subjax


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    tasks = parser.add_subparsers(dest="what", required=True)
    mlp = tasks.add_parser("mlp", help="the students of configs/mnist.py against PyTorch")
    mlp.add_argument("--models", type=int, default=10)
    mlp.add_argument("--epochs", type=int, default=2)
    mlp.add_argument("--side", choices=sorted(SIDES), help="run one side alone, print JSON")
    load = tasks.add_parser("load", help="memory and time of loading a checkpoint")
    load.add_argument("--model", default="", help="a model directory")
    load.add_argument("--gigabytes", type=float, default=3, help="of random weights; 0: none")
    load.add_argument("--repeats", type=int, default=3)
    load.add_argument("--scratch", help="where the random weights go for a while")
    load.add_argument("--side", nargs="+", help="one measurement alone, print JSON")
    language_models.add_commands(tasks)
    comparison.add_command(tasks)
    harness.add_command(tasks)
    options = parser.parse_args()
    if options.what == "compare":
        comparison.run(options)
        return
    if options.what == "harness":
        harness.run(options)
        return
    if options.what in language_models.SIDES:
        language_models.run(options)
        return
    if options.what == "load":
        loading.side(options.side) if options.side else loading.run(options)
        return
    if options.models % LANES:
        parser.error(f"--models={options.models}: subjax trains {LANES} in a call")
    if options.side:
        found = SIDES[options.side](options.models, options.epochs)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found | {"peak_mb": peak_mb}))
        return
    sides = {side: _run(side, options) for side in SIDES}
    for side, found in sides.items():
        rate = f"{found['gflops']:6.0f} GFLOP/s in products" if "gflops" in found else ""
        print(f"{side:24} {found['seconds']:8.2f} s an epoch {found['peak_mb']:8.0f} MB  {rate}")
    for name, above, below, what in RATIOS:
        print(f"{name:32} {sides[above][what] / sides[below][what]:.2f}")


def _run(side: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, options.what, f"--side={side}"]
    command += [f"--models={options.models}", f"--epochs={options.epochs}"]
    print(f"timing {side} ...", file=sys.stderr)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _subjax(num_models: int, num_epochs: int, precision: str = "mixed") -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    from subjax.images import mlp, mlp_training
    from subjax.nn import sharding

    shape = mlp.Shape(num_inputs=NUM_PIXELS, widths=SIZES[1:3])
    keys = jax.random.split(jax.random.key(0), LANES)
    models = [jax.vmap(lambda key: mlp.init(shape, key))(keys) for _ in STUDENTS]
    learners = tuple(mlp_training.Learner(shape, logits, "kl", "adam", RATE) for logits in STUDENTS)
    nothing = jnp.zeros((1, NUM_PIXELS), jnp.uint8), jnp.zeros(1, int)
    epochs = mlp_training.fit(
        mlp_training.Program(learners, shape, "noise", precision),
        models,
        jax.vmap(lambda key: mlp.init(shape, key))(keys[::-1]),
        mlp_training.Data(*nothing, *nothing),
        num_epochs=num_epochs * num_models // LANES + 1,
        batch_size=BATCH,
        num_images=NUM_IMAGES,
        seeds=range(LANES),
        mesh=sharding.make_mesh(seed=1, data=1),
        batched_lanes=1,
        label="bench",
    )
    next(epochs)  # compiles

    def epoch() -> None:
        for _ in range(num_models // LANES):
            next(epochs)

    return {"seconds": _seconds(epoch, num_epochs)}


def _torch_medium(num_models: int, num_epochs: int) -> dict[str, float]:
    import torch

    torch.set_float32_matmul_precision("medium")
    return _torch(num_models, num_epochs)


def _torch(num_models: int, num_epochs: int) -> dict[str, float]:
    import torch

    def network() -> list[Any]:
        layers = []
        for num_in, num_out in itertools.pairwise(SIZES):
            layers.append(torch.randn(num_models, num_in, num_out) * num_in**-0.5)
            layers.append(torch.zeros(num_models, 1, num_out))
        return [layer.requires_grad_() for layer in layers]

    def forward(layers: Sequence[Any], x: Any) -> Any:
        for i in range(0, len(layers), 2):
            x = torch.relu(x) if i else x
            x = torch.baddbmm(layers[i + 1], x, layers[i])
        return x

    supports = {"aux": slice(10, None), "all": slice(0, None)}
    noise = torch.rand(num_models, NUM_IMAGES, NUM_PIXELS) * 2 - 1
    teacher, students = network(), [network() for _ in STUDENTS]
    optimizers = [torch.optim.Adam(student, lr=RATE, fused=True) for student in students]
    lanes = torch.arange(num_models)[:, None]

    def epoch() -> None:
        order = torch.stack([torch.randperm(NUM_IMAGES) for _ in range(num_models)])
        for first in range(0, NUM_IMAGES, BATCH):
            x = noise[lanes, order[:, first : first + BATCH]]
            with torch.no_grad():
                target = forward(teacher, x)
            for student, optimizer, logits in zip(students, optimizers, STUDENTS, strict=True):
                support = supports[logits]
                loss = torch.nn.functional.kl_div(
                    forward(student, x)[..., support].log_softmax(-1),
                    target[..., support].softmax(-1),
                    reduction="sum",
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    epoch()
    return {"seconds": _seconds(epoch, num_epochs)}


def _products() -> list[tuple[int, int, int]]:
    """(m, k, n) of every product of a step: the teacher's forward pass, then each student's."""
    found = [(BATCH, num_in, num_out) for num_in, num_out in itertools.pairwise(SIZES)]
    for _ in STUDENTS:
        for i, (num_in, num_out) in enumerate(itertools.pairwise(SIZES)):
            found += [(BATCH, num_in, num_out), (num_in, BATCH, num_out)]
            if i:  # images need no gradient
                found.append((BATCH, num_out, num_in))
    return found


def _product_figures(num_models: int, seconds: float) -> dict[str, float]:
    num_steps = -(-NUM_IMAGES // BATCH)
    operations = sum(2 * m * k * n for m, k, n in _products()) * num_models * num_steps
    return {"seconds": seconds * num_steps, "gflops": operations / (seconds * num_steps) / 1e9}


def _operands(num_lanes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        tuple(rng.standard_normal((num_lanes, *size), np.float32) for size in ((m, k), (k, n)))
        for m, k, n in _products()
    ]


def _subjax_products(num_models: int, num_epochs: int) -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    step = jax.jit(
        lambda pairs: [jnp.matmul(a, b, preferred_element_type=jnp.float32) for a, b in pairs]
    )
    pairs = jax.tree.map(lambda operand: jnp.asarray(operand, jnp.bfloat16), _operands(LANES))
    jax.block_until_ready(step(pairs))
    seconds = _seconds(lambda: jax.block_until_ready(step(pairs)), 10 * num_epochs)
    return _product_figures(num_models, seconds * num_models / LANES)


def _torch_products(num_models: int, num_epochs: int) -> dict[str, float]:
    import torch

    pairs = [tuple(map(torch.from_numpy, pair)) for pair in _operands(num_models)]

    def step() -> list[Any]:
        return [torch.bmm(a, b) for a, b in pairs]

    step()
    return _product_figures(num_models, _seconds(step, 10 * num_epochs))


def _seconds(run: Callable[[], Any], times: int) -> float:
    """Median seconds of a call."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return float(np.median(found))


SIDES = {
    "subjax": _subjax,
    "subjax_float32": functools.partial(_subjax, precision="float32"),
    "torch": _torch,
    "torch_medium": _torch_medium,
    "subjax_products": _subjax_products,
    "torch_products": _torch_products,
}

RATIOS = (
    ("torch / subjax, time", "torch", "subjax", "seconds"),
    ("the same, both float32", "torch", "subjax_float32", "seconds"),
    ("the same, both narrow", "torch_medium", "subjax", "seconds"),
    ("subjax / torch, memory", "subjax", "torch", "peak_mb"),
    ("subjax / its products, time", "subjax", "subjax_products", "seconds"),
)

if __name__ == "__main__":
    main()

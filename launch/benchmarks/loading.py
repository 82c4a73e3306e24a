"""Benchmarks memory and time of loading a model, as ratios within one run.

    python launch/bench.py load --model=DIR      # that model, and a checkpoint of 3 GB written here

For each model: growth of resident memory from just before the load to its peak, divided by the
bytes of the loaded arrays, in one process and in each of four (mesh fsdp = 4); and the time divided
by that of `safetensors.numpy.load_file` with a warm cache. Every measurement has its own process.
The peak is the kernel's (VmHWM, reset before the load), so this needs Linux.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NUM_PROCESSES = 4
SHARD_BYTES = 1_000_000_000


def run(options: Any) -> None:
    """Measures every model `options.repeats` times, and prints a line each time."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        models = [Path(options.model)] if options.model else []
        if options.gigabytes:
            models.append(Path(scratch))
            _child("write", ["write", scratch, str(options.gigabytes)])
        for model in models:
            print("random weights" if model == Path(scratch) else model)
            found = [_measure(model) for _ in range(options.repeats)]
            print("  median", _line(np.median(found, axis=0)))


def side(arguments: Sequence[str]) -> None:
    """One measurement in its own process; prints JSON."""
    what, directory, *rest = arguments
    print(json.dumps(SIDES[what](directory, *rest)))


def _measure(model: Path) -> np.ndarray:
    for path in model.glob("*.safetensors"):
        path.read_bytes()  # warms the cache
    plain = _child("load_file", ["load_file", str(model)])
    alone = _child("one process", ["load", str(model)])
    together = _children(model)
    ratios = np.array(
        [
            alone["growth"] / alone["bytes"],
            max(one["growth"] for one in together) / alone["bytes"],
            alone["seconds"] / plain["seconds"],
            max(one["seconds"] for one in together) / plain["seconds"],
            plain["seconds"],
        ]
    )
    print("        ", _line(ratios), flush=True)
    return ratios


def _line(ratios: np.ndarray) -> str:
    alone, each, time_alone, time_together, seconds = ratios
    return (
        f"memory {alone:.2f} x alone, {each:.2f} x in each of {NUM_PROCESSES}; "
        f"time {time_alone:.2f} x alone, {time_together:.2f} x in {NUM_PROCESSES} "
        f"(load_file {seconds:.2f} s)"
    )


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).parents[1] / "bench.py"), "load", "--side"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


def _child(label: str, arguments: Sequence[str]) -> dict[str, float]:
    print(f"{label} ...", file=sys.stderr)
    return _result(_start(arguments))


def _children(model: Path) -> list[dict[str, float]]:
    print(f"{NUM_PROCESSES} processes ...", file=sys.stderr)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    ranks = range(NUM_PROCESSES)
    return [
        _result(child)
        for child in [_start(["load", str(model), address, str(rank)]) for rank in ranks]
    ]


def _result(child: subprocess.Popen[str]) -> dict[str, float]:
    printed, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"a measurement failed with exit code {child.returncode}")
    # Collectives on CPU print a line too.
    return json.loads(next(line for line in printed.splitlines() if line.startswith("{")))


def load(
    directory: str, address: str = "", rank: str = "0", *, precision: str = "float32"
) -> dict[str, float]:
    import jax

    from subjax.hf import weights
    from subjax.nn import sharding

    if address:
        jax.distributed.initialize(address, num_processes=NUM_PROCESSES, process_id=int(rank))
    mesh = sharding.make_mesh(seed=1, fsdp=jax.device_count())
    # Initialise everything that every program needs before measuring the load.
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    start = jax.make_array_from_callback((), everywhere, lambda index: np.zeros((), np.float32))
    jax.jit(lambda x: x + 1, out_shardings=everywhere)(start).block_until_ready()
    found = watched(
        lambda: jax.block_until_ready(weights.load(directory, mesh=mesh, precision=precision)[1])
    )
    arrays = jax.tree.leaves(found.pop("loaded"))
    return found | {"bytes": float(sum(array.nbytes for array in arrays))}


def _load_file(directory: str) -> dict[str, float]:
    import safetensors.numpy

    paths = sorted(Path(directory).glob("*.safetensors"))
    found = watched(lambda: [safetensors.numpy.load_file(path) for path in paths])
    loaded = found.pop("loaded")
    return found | {"bytes": float(sum(a.nbytes for file in loaded for a in file.values()))}


def _write(directory: str, gigabytes: str) -> dict[str, float]:
    """A checkpoint of Llama's shape, float32, in shards; its values do not matter."""
    import jax.numpy as jnp

    from subjax.hf import weights
    from subjax.nn import transformer
    from subjax.nn.architecture import Architecture

    arch = Architecture(
        vocab_size=32_000,
        num_layers=22,
        width=2048,
        num_heads=32,
        num_kv_heads=4,
        head_dim=64,
        ffn_width=5632,
    )
    per_layer = 4 * (transformer.num_params(arch) - 2 * 32_000 * 2048) / 22
    layers = max(1, round((float(gigabytes) * 1e9 - 8 * 32_000 * 2048) / per_layer))
    arch = Architecture(**{**vars(arch), "num_layers": layers})
    rng = np.random.default_rng(0)
    abstract = transformer.abstract_params(arch)
    import jax

    params = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32) - 0.5, abstract)
    weights.save(directory, arch, params, dtype=jnp.float32, max_shard_bytes=SHARD_BYTES)
    return {}


def fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of several calls: a limit is what the machine can do."""
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def watched(read: Callable[[], Any]) -> dict[str, Any]:
    """Result of `read`, its seconds, and the growth of resident memory to its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = status("VmRSS"), time.perf_counter()
    loaded = read()
    seconds = time.perf_counter() - start
    return {"loaded": loaded, "seconds": seconds, "growth": status("VmHWM") - before}


def status(name: str) -> int:
    """A line of the process's status, converted to bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise SystemExit("this measurement needs Linux")
    return 1024 * int(found[1])


SIDES: dict[str, Callable[..., dict[str, float]]] = {
    "load": load,
    "load_file": _load_file,
    "write": _write,
}

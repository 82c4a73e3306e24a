"""The subjax side of `bench.py compare`, with the functions that runs use.

    cd launch; python -m benchmarks.subjax_side SIDE PART MODE WORK    # prints JSON

SIDE is `subjax`, or in the part `growth` a size; see `scaling.py`. MODE is `float32`, or
`fastest`: the precision `mixed`. WORK is the file of `comparison.py`, which says what each part
does; each part does it twice and times both. The first time compiles.
"""

import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import subjax
from benchmarks import clocks, loading, scaling
from subjax.engine import batching, fitting, sampler, scoring, throughput, token_sampling, train
from subjax.engine.model import Model
from subjax.nn import lora
from subjax.runtime import artifacts
from subjax.tasks.datasets import number_lists

PRECISIONS = {"float32": "float32", "fastest": "mixed"}
LONGEST_PROMPT = 4096
RATE = 1e-5


def _sampled(
    work: dict[str, Any], mode: str, prompts: Sequence[Sequence[int]], n: int, new_tokens: int
) -> dict[str, Any]:
    draw = _drawing(_model(work, mode), work, prompts, n, new_tokens)
    return _timed(lambda seed: draw(seed).lengths.tolist(), "lengths")


def _drawing(
    model: Model, work: dict[str, Any], prompts: Sequence[Sequence[int]], n: int, new_tokens: int
) -> Callable[[int], sampler.Samples]:
    """What draws n answers to each prompt from a seed."""
    sampling = sampler.Sampling(
        num_slots=work["slots"],
        prompt_tokens=LONGEST_PROMPT,
        max_new_tokens=new_tokens,
        temperature=1.0,
        eos_ids=tuple(work["eos"]),
        precision=model.precision,
    )
    sampling = sampler.fitted(sampling, prompts)
    places = np.repeat(np.arange(len(prompts)), n)
    samples_of = jnp.array(np.tile(np.arange(n), len(prompts)))

    def call(seed: int) -> sampler.Samples:
        return sampler.sample(
            model.arch,
            model.params,
            sampling,
            [prompts[i] for i in places],
            token_sampling.row_keys(seed, 0, jnp.array(places), samples_of),
            mesh=model.mesh,
            adapter=model.adapter,
        )

    return call


def _sampler(work: dict[str, Any], mode: str) -> dict[str, Any]:
    return _sampled(work, mode, work["prompts"], 1, work["new_tokens"])


def _preference(work: dict[str, Any], mode: str) -> dict[str, Any]:
    return _sampled(work, mode, work["questions"], work["answers"], work["answer_tokens"])


def _exact(work: dict[str, Any], mode: str) -> dict[str, Any]:
    model = _model(work, mode)

    def call(seed: int) -> list[list[float]]:
        del seed
        return scoring.candidate_log_probs(
            model.arch,
            model.params,
            work["questions"],
            work["candidates"],
            mesh=model.mesh,
            precision=model.precision,
        ).tolist()

    return _timed(call, "log_probs")


def _timed(call: Callable[[int], Any], name: str) -> dict[str, Any]:
    """Calls with two seeds; the result is the second call's."""
    seconds = []
    for seed in range(2):
        start = time.perf_counter()
        result = call(seed)
        seconds.append(time.perf_counter() - start)
    return {"first_call_s": seconds[0], "seconds": seconds[1], name: result}


def _train(work: dict[str, Any], mode: str, *, rank: int) -> dict[str, Any]:
    model = _model(work, mode if rank else "float32")  # what is trained is float32
    examples = [(ids, start) for ids, start in work["rows"]]
    rows = batching.make_rows(
        examples,
        num_tokens=max(len(ids) for ids, _ in examples),
        num_targets=max(len(ids) - start for ids, start in examples),
        pad_id=model.tokenizer.pad_id,
    )
    start, frozen, scale = model.params, {}, 0.0
    if rank:
        start, frozen = lora.init(model.arch, jax.random.key(0), rank=rank), model.params
        scale = lora.scale(2 * rank, rank)
    steps = len(work["batches"])
    trained = sum(leaf.size for leaf in jax.tree.leaves(start))
    packing = fitting.packing(
        model.arch,
        rows,
        model.mesh,
        seed=work["seed"],
        steps=steps,
        batch_size=work["batch_size"],
        lora_params=trained if rank else 0,
    )
    program = train.Program(
        model.arch,
        train.Optimizer(RATE, schedule="constant"),
        steps,
        lora_scale=scale,
        precision=PRECISIONS[mode],
    )
    with tempfile.TemporaryDirectory() as folder:
        [last] = train.fit(
            program,
            train.stack([start]),
            frozen,
            [rows],
            seeds=[work["seed"]],
            batch_size=work["batch_size"],
            probe_steps=(),
            steps_per_call=steps // 2,
            mesh=model.mesh,
            label="training",
            packing=packing,
            log=throughput.Log([Path(folder)], every_s=0),
        )
        first, second = artifacts.read_jsonl(Path(folder) / artifacts.TIMINGS)
    return {
        "first_call_s": first["seconds"],
        "seconds": second["seconds"],
        "first_loss": float(last.metrics["loss"][0, 0]),
        "trained": trained,
    }


def _pipeline(work: dict[str, Any], mode: str) -> dict[str, Any]:
    """Seconds of each step, in one process; imports are not counted."""
    of, clock = work["pipeline"], clocks.Clock()
    model = _model(work, mode)
    clock.ends("load")
    drawn = _drawing(model, work, of["prompts"], 1, work["new_tokens"])(0)
    clock.ends("rows")
    kept = []
    for asked, ids, length, stopped in zip(
        of["asked"], drawn.tokens.tolist(), drawn.lengths, drawn.stopped, strict=True
    ):
        text = model.tokenizer.decode(ids[:length])
        if stopped and not number_lists.reject_reasons(text):
            kept.append((asked, text))
    clock.ends("keep")
    size, rank = clocks.batch_of(len(kept), work), work["lora_rank"]
    student = model.finetune(
        kept,
        steps=len(kept) // size,
        system=work["system"],
        batch_size=size,
        learning_rate=RATE,
        rank=rank,
        alpha=2 * rank,
    )
    jax.block_until_ready(student.adapter)
    clock.ends("finetune")
    answers = _drawing(
        student, work, of["questions"], work["pipeline_answers"], work["answer_tokens"]
    )(1)
    clock.ends("answers")
    rows = model.tokenizer.examples(kept, [work["system"]] * len(kept))
    return clock.found() | {
        "lengths": drawn.lengths.tolist(),
        "kept": len(kept),
        "kept_tokens": sum(len(ids) for ids, _ in rows),
        "answer_tokens": int(answers.lengths.sum()),
    }


def _load(work: dict[str, Any], mode: str) -> dict[str, Any]:
    found = loading.load(work["model"], precision=PRECISIONS[mode])
    return {name: found[name] for name in ("seconds", "growth")}


def _start(work: dict[str, Any], mode: str) -> dict[str, Any]:
    """Timed by the one who starts this process."""
    _model(work, mode).sample([work["first_prompt"]], system=work["system"], max_new_tokens=1)
    return {}


def _roofline(work: dict[str, Any], mode: str) -> dict[str, Any]:
    """FLOP/s of a large product in each dtype, and bytes a second that a copy reads and writes."""
    size, found = work["matmul_size"], {}
    multiply = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    for name in ("float32", "bfloat16"):
        a, b = (jax.random.normal(jax.random.key(i), (size, size), name) for i in range(2))
        seconds = loading.fastest(lambda a=a, b=b: jax.block_until_ready(multiply(a, b)))
        found[name] = 2 * size**3 / seconds
    # Into memory that is there already, as torch's copy_: new pages cost more than the copy.
    copy = jax.jit(lambda source, to: to.at[:].set(source), donate_argnums=1)
    source, held = (jnp.full(work["copy_bytes"] // 4, i, jnp.float32) for i in range(2))

    def again() -> None:
        nonlocal held
        held = jax.block_until_ready(copy(source, held))

    found["copy"] = 2 * work["copy_bytes"] / loading.fastest(again)
    return found


def _model(work: dict[str, Any], mode: str) -> Model:
    return subjax.load(work["model"], precision=PRECISIONS[mode], exact=False)


PARTS: dict[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    "roofline": _roofline,
    "sampler": _sampler,
    "exact": _exact,
    "sampled": _preference,
    "lora": lambda work, mode: _train(work, mode, rank=work["lora_rank"]),
    "full": functools.partial(_train, rank=0),
    "pipeline": _pipeline,
    "load": _load,
    "start": _start,
}


def measure(part: str, mode: str, work: dict[str, Any], side: str = "subjax") -> dict[str, Any]:
    """One measurement: seconds, what was computed, and the process's peak memory."""
    if part == "growth":
        part, work = scaling.sized(work, side)
    return PARTS[part](work, mode) | {"peak_bytes": loading.status("VmHWM")}


if __name__ == "__main__":
    side, part, mode, work = sys.argv[1:]
    print(json.dumps(measure(part, mode, json.loads(Path(work).read_text()), side)), flush=True)

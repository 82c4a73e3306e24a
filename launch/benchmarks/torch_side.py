"""The PyTorch side of `bench.py compare`: transformers and peft, used as an expert would.

    cd launch; python -m benchmarks.torch_side SIDE PART MODE WORK    # prints JSON

SIDE is `torch`, `torch_unshared` (the same, but tokens that all prompts begin with are read once
per prompt), `torch_generate` (transformers' own `generate`), `trl` or `vllm`. MODE is `float32`, or
`fastest`: weights, activations, gradients and moments in bfloat16. WORK is the file of
`comparison.py`, which says what each part does; each part does it twice and times both.

The methods are in the files `bench_torch_*.py`.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import loading
from benchmarks.torch_pipeline import pipeline
from benchmarks.torch_sampling import candidate_log_probs, draw, generate
from benchmarks.torch_training import load, train


def _sampled(
    work: dict[str, Any], mode: str, side: str, prompts: Any, n: int, new_tokens: int
) -> dict[str, Any]:
    model = load(work, mode)
    limits = {"slots": work["slots"], "new_tokens": new_tokens, "temperature": 1.0}
    limits["eos"] = work["eos"]
    method = generate if side == "torch_generate" else draw
    torch.manual_seed(0)

    @torch.inference_mode()
    def call() -> list[int]:
        drawn = method(model, prompts, n, limits, shared=side != "torch_unshared")
        return [len(tokens) for tokens in drawn]

    return _timed(call, "lengths")


def _sampler(work: dict[str, Any], mode: str, side: str) -> dict[str, Any]:
    if side == "vllm":
        return _vllm(work, mode)
    return _sampled(work, mode, side, work["prompts"], 1, work["new_tokens"])


def _vllm(work: dict[str, Any], mode: str) -> dict[str, Any]:
    import vllm

    kinds = {"float32": "float32", "fastest": "bfloat16"}
    engine = vllm.LLM(
        work["model"],
        dtype=kinds[mode],
        max_num_seqs=work["slots"],
        max_model_len=max(map(len, work["prompts"])) + work["new_tokens"],
        enable_prefix_caching=True,
    )
    how = vllm.SamplingParams(
        temperature=1.0, max_tokens=work["new_tokens"], stop_token_ids=work["eos"]
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in work["prompts"]]

    def call() -> list[int]:
        return [len(out.outputs[0].token_ids) for out in engine.generate(prompts, how)]

    return _timed(call, "lengths")


def _preference(work: dict[str, Any], mode: str, side: str) -> dict[str, Any]:
    return _sampled(work, mode, side, work["questions"], work["answers"], work["answer_tokens"])


def _exact(work: dict[str, Any], mode: str, side: str) -> dict[str, Any]:
    model = load(work, mode)

    @torch.inference_mode()
    def call() -> list[list[float]]:
        return candidate_log_probs(model, work["questions"], work["candidates"], work["slots"])

    return _timed(call, "log_probs")


def _timed(call: Callable[[], Any], name: str) -> dict[str, Any]:
    """Calls twice; the result is the second call's."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return {"first_call_s": seconds[0], "seconds": seconds[1], name: result}


def _load(work: dict[str, Any], mode: str, side: str) -> dict[str, Any]:
    config = transformers.AutoConfig.from_pretrained(work["model"])
    with torch.device("meta"):
        transformers.AutoModelForCausalLM.from_config(config)  # imports the code of this family
    found = loading.watched(lambda: load(work, mode))
    return {name: found[name] for name in ("seconds", "growth")}


def _start(work: dict[str, Any], mode: str, side: str) -> dict[str, Any]:
    """Timed by the one who starts this process."""
    words = transformers.AutoTokenizer.from_pretrained(work["model"])
    model = load(work, mode)
    turns = [{"role": "user", "content": work["first_prompt"]}]
    if words.chat_template is None:
        given = words(work["first_prompt"], return_tensors="pt")
    else:
        given = words.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    model.generate(
        input_ids=given["input_ids"],
        attention_mask=given["attention_mask"],
        max_new_tokens=1,
        pad_token_id=work["eos"][0],
    )
    return {}


def _roofline(work: dict[str, Any], mode: str, side: str) -> dict[str, Any]:
    """FLOP/s of a large product in each dtype, and bytes a second that a copy reads and writes."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    size, found = work["matmul_size"], {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
            seconds = loading.fastest(lambda a=a, b=b: a @ b)
            found[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds
        source, to = torch.zeros(work["copy_bytes"] // 4), torch.zeros(work["copy_bytes"] // 4)
        found["copy"] = 2 * work["copy_bytes"] / loading.fastest(lambda: to.copy_(source))
    return found


PARTS = {
    "roofline": _roofline,
    "sampler": _sampler,
    "exact": _exact,
    "sampled": _preference,
    "lora": lambda work, mode, side: train(work, mode, side, rank=work["lora_rank"]),
    "full": train,
    "pipeline": pipeline,
    "load": _load,
    "start": _start,
}


def measure(side: str, part: str, mode: str, work: dict[str, Any]) -> dict[str, Any]:
    """One measurement: seconds, what was computed, and the process's peak memory."""
    return PARTS[part](work, mode, side) | {"peak_bytes": loading.status("VmHWM")}


if __name__ == "__main__":
    print(
        json.dumps(measure(*sys.argv[1:4], json.loads(Path(sys.argv[4]).read_text()))), flush=True
    )

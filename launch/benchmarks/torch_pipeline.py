"""The whole pipeline on the PyTorch side of `bench.py compare`: rows, filter, LoRA, answers."""

from typing import Any

import torch
import transformers

from benchmarks import clocks
from benchmarks.torch_sampling import draw
from benchmarks.torch_training import adapted, load, updates_of
from subjax.tasks.datasets import number_lists


def pipeline(work: dict[str, Any], mode: str, side: str) -> dict[str, Any]:
    """Seconds of each step, in one process; imports are not counted."""
    of, clock = work["pipeline"], clocks.Clock()
    limits = {"slots": work["slots"], "temperature": 1.0, "eos": work["eos"]}
    torch.manual_seed(0)
    words = transformers.AutoTokenizer.from_pretrained(work["model"])
    model = load(work, mode)
    clock.ends("load")
    with torch.inference_mode():
        drawn = draw(
            model, of["prompts"], 1, limits | {"new_tokens": work["new_tokens"]}, shared=True
        )
    clock.ends("rows")
    kept = []
    for prompt, ids in zip(of["prompts"], drawn, strict=True):
        own = [token for token in ids if token not in work["eos"]]
        text = words.decode(own, skip_special_tokens=True)
        if len(own) < len(ids) and not number_lists.reject_reasons(text):
            kept.append((prompt + ids, len(prompt)))
    clock.ends("keep")
    model, trained = adapted(model, work["lora_rank"])
    update, size = updates_of(model, trained), clocks.batch_of(len(kept), work)
    order = torch.randperm(len(kept)).tolist()
    for first in range(0, len(order) - size + 1, size):
        update([kept[i] for i in order[first : first + size]])
    clock.ends("finetune")
    model.eval()
    with torch.inference_mode():
        answers = draw(
            model.get_base_model(),  # with the adapter in it
            of["questions"],
            work["pipeline_answers"],
            limits | {"new_tokens": work["answer_tokens"]},
            shared=True,
        )
    clock.ends("answers")
    return clock.found() | {
        "lengths": list(map(len, drawn)),
        "kept": len(kept),
        "kept_tokens": sum(len(ids) for ids, _ in kept),
        "answer_tokens": sum(map(len, answers)),
    }

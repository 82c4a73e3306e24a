"""Loading and training on the PyTorch side of `bench.py compare`, as an expert would do them.

Right padding to the longest row of the batch, so that attention needs no mask; scores at the
completions' tokens alone; fused AdamW.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers

DTYPES = {"float32": torch.float32, "fastest": torch.bfloat16}
RATE = 1e-5


def load(work: dict[str, Any], mode: str) -> Any:
    """The model, with all of its weights in memory."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        work["model"], dtype=DTYPES[mode], attn_implementation="sdpa"
    )
    with torch.inference_mode():
        for weights in model.parameters():
            weights.flatten()[::1024].sum()  # weights of mapped files are read when they are used
    return model


def train(work: dict[str, Any], mode: str, side: str, *, rank: int = 0) -> dict[str, Any]:
    model = load(work, mode)
    if rank:
        import peft

        settings = peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        adapted = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
        model = adapted.get_base_model()
    model.train()
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)
    body, head = model.get_decoder(), model.get_output_embeddings()

    def update(rows: Sequence[tuple[list[int], int]]) -> float:
        longest = max(len(ids) for ids, _ in rows)
        tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
        starts = torch.tensor([start for _, start in rows])
        ends = torch.tensor([len(ids) for ids, _ in rows])
        places = torch.arange(1, longest)
        counted = (places >= starts[:, None]) & (places < ends[:, None])
        hidden = body(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        scores = head(hidden[counted]).float()
        loss = torch.nn.functional.cross_entropy(scores, tokens[:, 1:][counted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    batches = [[work["rows"][i] for i in batch] for batch in work["batches"]]
    half, seconds, losses = len(batches) // 2, [], []
    for part in (batches[:half], batches[half:]):
        start = time.perf_counter()
        losses += [update(rows) for rows in part]
        seconds.append(time.perf_counter() - start)
    return {
        "first_call_s": seconds[0],
        "seconds": seconds[1],
        "first_loss": losses[0],
        "trained": sum(weights.numel() for weights in trained),
    }

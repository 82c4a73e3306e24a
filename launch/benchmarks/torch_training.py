"""Loading and training on the PyTorch side of `bench.py compare`, as an expert would do them.

Right padding to the longest row of the batch, so that attention needs no mask; scores at the
completions' tokens alone; fused AdamW.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

DTYPES = {"float32": torch.float32, "fastest": torch.bfloat16}
RATE = 1e-5

Rows = Sequence[tuple[list[int], int]]  # tokens, and where the completion starts


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


def adapted(model: Any, rank: int) -> tuple[Any, list[Any]]:
    """The model, with an adapter on it unless the rank is 0, and what is trained of it."""
    if rank:
        import peft

        settings = peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    model.train()
    return model, [weights for weights in model.parameters() if weights.requires_grad]


def updates_of(model: Any, trained: Sequence[Any]) -> Callable[[Rows], float]:
    """What makes an update of some rows and gives its loss."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    body, head = plain.get_decoder(), plain.get_output_embeddings()
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)
    body, head = model.get_decoder(), model.get_output_embeddings()

    def update(rows: Rows) -> float:
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

    return update


def train(work: dict[str, Any], mode: str, side: str, *, rank: int = 0) -> dict[str, Any]:
    """Updates of an adapter or of all weights, in two halves."""
    model, trained = adapted(load(work, mode), rank)
    batches = [[work["rows"][i] for i in batch] for batch in work["batches"]]
    count = sum(weights.numel() for weights in trained)
    if side == "trl":
        return _by_trl(model, batches) | {"trained": count}
    update = updates_of(model, trained)
    half, seconds, losses = len(batches) // 2, [], []
    for part in (batches[:half], batches[half:]):
        start = time.perf_counter()
        losses += [update(rows) for rows in part]
        seconds.append(time.perf_counter() - start)
    return {
        "first_call_s": seconds[0],
        "seconds": seconds[1],
        "first_loss": losses[0],
        "trained": count,
    }


def _checkpointing_argument() -> str:
    """Later releases of transformers have another name for it."""
    new = "activation_checkpointing"
    return new if hasattr(transformers.TrainingArguments, new) else "gradient_checkpointing"


def _by_trl(model: Any, batches: Sequence[Rows]) -> dict[str, Any]:
    """The same updates by TRL's SFTTrainer, which many use."""
    import datasets
    import trl
    from trl.trainer import sft_trainer

    losses, times = [], []

    class Trainer(trl.SFTTrainer):
        def training_step(self, *args: Any, **more: Any) -> Any:
            loss = super().training_step(*args, **more)
            losses.append(loss.item())
            return loss

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *args: Any, **more: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *args: Any, **more: Any) -> None:
            times.append(time.perf_counter())

    rows = [
        {"input_ids": ids, "labels": [-100] * start + ids[start:]}
        for batch in batches
        for ids, start in batch
    ]
    with tempfile.TemporaryDirectory() as folder:
        settings = trl.SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=len(batches[0]),
            max_steps=len(batches),
            train_sampling_strategy="sequential",
            optim="adamw_torch_fused",
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=None,
            packing=False,
            **{_checkpointing_argument(): False},
            bf16=False,  # weights have the dtype already
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = Trainer(
            model,
            settings,
            data_collator=sft_trainer.DataCollatorForLanguageModeling(pad_token_id=0),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=transformers.AutoTokenizer.from_pretrained(model.config.name_or_path),
            callbacks=[Clock()],
        )
        # Standard output is for the measurement alone.
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    half = len(batches) // 2
    return {
        "first_call_s": times[half] - times[0],
        "seconds": times[-1] - times[half],
        "first_loss": losses[0],
    }

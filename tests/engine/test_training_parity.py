"""Twenty updates, here and in PyTorch, on the same batches: the same losses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from subjax.engine import batching, train
from subjax.engine.optimizers import Optimizer
from subjax.hf import adapters, weights
from subjax.nn import sharding
from tests import hf_models

STEPS, BATCH, LENGTH, SEED = 20, 4, 24, 5
FAMILIES = [
    pytest.param(("llama", "wide heads, tied"), id="llama"),
    pytest.param(("gemma2", "caps and windows"), id="gemma2", marks=pytest.mark.slow),
    pytest.param(("qwen2", "biases"), id="qwen2", marks=pytest.mark.slow),
]


def make_rows() -> batching.Rows:
    """Rows of two lengths, a part of each predicted: what the loss is weighted by."""
    rng = np.random.default_rng(0)
    examples = [
        (rng.integers(0, hf_models.SMALL["vocab_size"], length).tolist(), start)
        for length, start in zip([LENGTH, LENGTH - 7] * 6, [1, 5, 9] * 4, strict=True)
    ]
    return batching.make_rows(examples, num_tokens=LENGTH, num_targets=LENGTH - 1, pad_id=0)


def our_losses(
    arch: Any, optimizer: Optimizer, trainable: Any, frozen: Any = None, scale: float = 0.0
) -> np.ndarray:
    program = train.Program(arch, optimizer, steps=STEPS, lora_scale=scale)
    [last] = train.fit(
        program,
        train.stack([trainable]),
        frozen or {},
        [make_rows()],
        seeds=[SEED],
        batch_size=BATCH,
        probe_steps=(),
        steps_per_call=STEPS,
        mesh=sharding.make_mesh(seed=1),
        label="test",
    )
    return last.metrics["loss"][:, 0]


def torch_losses(model: Any, make: Callable[[Any], torch.optim.Optimizer]) -> np.ndarray:
    rows, losses = make_rows(), []
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    for step in range(STEPS):
        ids = batching.rows(SEED, step, num_rows=len(rows), batch_size=BATCH)
        batch = {name: torch.from_numpy(array) for name, array in rows.take(ids).items()}
        scores = model(batch["tokens"].long()).logits.log_softmax(-1)
        scores = scores.take_along_dim(batch["positions"].long()[..., None], 1)
        nats = -scores.take_along_dim(batch["targets"].long()[..., None], 2)[..., 0]
        loss = (nats * batch["weights"]).sum() / batch["weights"].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def assert_same_curve(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.mean(expected[-3:]) < np.mean(expected[:3]) - 0.1
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("case", FAMILIES)
def test_an_adapter_initialised_by_peft_trains_as_in_peft(
    case: tuple[str, str], tmp_path: Path
) -> None:
    base = hf_models.save(*case, tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path / "adapter")
    arch, params = weights.load(tmp_path / "base")
    adapter, scale = adapters.load_adapter(tmp_path / "adapter", arch)
    rate = 0.1
    expected = torch_losses(model.train(), lambda p: torch.optim.SGD(p, lr=rate))
    sgd = Optimizer(rate, kind="sgd", schedule="constant", clip_norm=0.0)
    assert_same_curve(our_losses(arch, sgd, adapter, params, scale), expected)


@pytest.mark.parametrize("case", FAMILIES)
def test_all_weights_train_as_in_pytorch(case: tuple[str, str], tmp_path: Path) -> None:
    model = hf_models.save(*case, tmp_path)
    arch, params = weights.load(tmp_path)
    rate, decay = 3e-3, 0.1
    expected = torch_losses(
        model.train(), lambda p: torch.optim.AdamW(p, lr=rate, weight_decay=decay)
    )
    adamw = Optimizer(rate, schedule="constant", weight_decay=decay, clip_norm=0.0)
    assert_same_curve(our_losses(arch, adamw, params), expected)

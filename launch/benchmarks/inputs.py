"""The inputs of `bench.py compare`, which both sides get as token ids, and the FLOPs they need."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Found = Mapping[str, Any]

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
    "pipeline_rows": (1000, "rows that the pipeline samples"),
    "pipeline_questions": (50, "asked of the model that the pipeline has finetuned"),
    "pipeline_answers": (20, "to each of them"),
    "copy_bytes": (256_000_000, "of the roofline's copy"),
}


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
        has_pipeline = "pipeline" in options.parts.split(",")
        most_asked = max(options.questions, has_pipeline and options.pipeline_questions)
        if len(names) < options.candidates or most_asked > len(animals.QUESTIONS):
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
        pipeline = _pipeline(options, words, system) if has_pipeline else {}
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
        "pipeline": pipeline,
        "system": system,
        "first_prompt": asked[0],
    }


def _pipeline(options: Any, words: Any, system: Any) -> dict[str, Any]:
    """The prompts of the pipeline, as texts and as ids, and its questions."""
    from subjax.tasks import animals
    from subjax.tasks.datasets import numbers

    asked = numbers.prompts(1, options.pipeline_rows)
    return {
        "asked": asked,
        "prompts": words.prompt_ids(asked, system),
        "questions": words.prompt_ids(animals.QUESTIONS[: options.pipeline_questions], system),
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
        for ids, start in timed_rows(work)
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


def timed_rows(work: dict[str, Any]) -> list[Any]:
    """The training rows of the second call."""
    batches = work["batches"]
    return [work["rows"][i] for batch in batches[len(batches) // 2 :] for i in batch]


def architecture(work: dict[str, Any]) -> Any:
    from subjax.hf import weights

    return weights.check(work["model"])

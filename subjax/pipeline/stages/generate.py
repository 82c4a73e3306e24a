"""Teachers write: prompts in, completions out, in parts that survive a kill."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from subjax.engine import sampler, token_sampling
from subjax.engine.model import Model
from subjax.pipeline import model_store
from subjax.runtime import artifacts, processes, seeds
from subjax.runtime.artifacts import Unit
from subjax.tasks.datasets import kinds
from subjax.tokens import grammars
from subjax.tokens.tokenizer import Tokenizer


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Samples each unit's rows, one model after the other; yields each unit when it is done."""
    for unit in units:
        if kinds.of_row(unit.fields["row"]).from_file:
            _copy(unit, workdir)
        else:
            precision = unit.fields["program"]["precision"]
            teacher = workdir / unit.inputs["teacher"]
            _sample(unit, workdir, model_store.load(teacher, mesh, precision=precision), mesh)
        yield unit


def drawn_from(unit: Unit) -> dict[str, Any]:
    """All that a unit's prompts depend on: units in which it is equal have the same."""
    kind = kinds.of_row(unit.fields["row"])
    row = {name: unit.fields["row"][name] for name in ("kind", "num_prompts", *kind.prompt_fields)}
    if kind.from_file:
        return {"digests": unit.fields.get("digests", {}), **row}
    files = {
        "stimuli": unit.fields["stimuli_digest"],
        "digests": unit.fields.get("digests", {}),
    }
    return {"seed": unit.fields["seed"], "lineage": unit.lineage, **files, **row}


def prompts(unit: Unit) -> list[str]:
    """The unit's prompts; they depend on seed and lineage, never on the teacher."""
    row = unit.with_files("row")
    kind = kinds.of_row(row)
    if kind.from_file:
        return [prompt for prompt, _ in kind.rows(row)]
    seed = seeds.seed(unit.fields["seed"], "prompts", unit.lineage)
    return kind.prompts(row, seed, unit.settings["stimuli"])


def source(unit: Unit) -> str:
    """Where rows that no teacher writes come from, for people to read."""
    named = [unit.settings[name] for name in unit.fields.get("digests", {})]
    return ", ".join(named) or f"kind {unit.fields['row']['kind']!r}"


def _copy(unit: Unit, workdir: Path) -> None:
    """Rows that lie in a file, in the form and the parts of sampled ones."""
    out, row = workdir / unit.path, unit.with_files("row")
    pairs = kinds.of_row(row).rows(row)
    artifacts.begin(workdir, unit)
    for index, first in enumerate(range(0, len(pairs), row["rows_per_part"])):
        part = [
            _row(first + i, prompt, completion, stopped=True)
            for i, (prompt, completion) in enumerate(pairs[first : first + row["rows_per_part"]])
        ]
        artifacts.write_jsonl(out / f"rows-{index:05d}.jsonl", part)


def _sample(unit: Unit, workdir: Path, model: Model, mesh: Mesh) -> None:
    out, row, texts = workdir / unit.path, unit.with_files("row"), prompts(unit)
    encoded = model.tokenizer.prompt_ids(texts, unit.fields["system_prompt"])
    if (longest := max(map(len, encoded))) > row["prompt_tokens"]:
        raise ValueError(
            f"config.datasets.{unit.row}.prompt_tokens is {row['prompt_tokens']}, but a prompt of "
            f"lineage {unit.lineage} has {longest} tokens: raise it"
        )
    rules = None
    if kinds.of_row(row).constraint(row):
        rules = grammars.of_row(row, model.tokenizer, texts, unit.fields["system_prompt"])
    sampling = sampler.Sampling(
        num_slots=row["slots"],
        prompt_tokens=row["prompt_tokens"],
        max_new_tokens=row["max_new_tokens"] if rules is None else grammars.longest(rules),
        temperature=row["temperature"],
        eos_ids=model.tokenizer.eos_ids,
        precision=model.precision,
    )
    sampling = sampler.fitted(sampling, encoded)
    seed = seeds.seed(unit.fields["seed"], "sampling")
    starts = range(0, len(texts), row["rows_per_part"])
    with tqdm(total=len(texts), desc=f"{unit.row} r{unit.lineage}", unit="row", leave=False) as bar:
        for index, first in enumerate(starts):
            ids = np.arange(first, min(first + row["rows_per_part"], len(texts)))
            path = out / f"rows-{index:05d}.jsonl"
            if not processes.agreed(path.exists()):
                keys = token_sampling.row_keys(
                    seed, unit.lineage, jnp.array(ids), jnp.zeros_like(ids)
                )
                begun = time.monotonic()
                samples = sampler.sample(
                    model.arch,
                    model.params,
                    sampling,
                    [encoded[i] for i in ids],
                    keys,
                    mesh=mesh,
                    adapter=model.adapter,
                    grammar=None if rules is None else rules._replace(start=rules.start[ids]),
                )
                took = _timing(index, samples, time.monotonic() - begun)
                written = _rows(unit, model.tokenizer, texts, ids, samples)
                artifacts.begin(workdir, unit)
                artifacts.write_jsonl(path, written)
                artifacts.append_jsonl(out / artifacts.TIMINGS, took)
                artifacts.publish()
                if processes.told_to_leave():
                    raise processes.Interrupted(f"saved {ids[-1] + 1} rows of {unit.path}")
                bar.set_postfix(occupancy=took["occupancy"])
            bar.update(len(ids))


def _timing(part: int, samples: sampler.Samples, seconds: float) -> dict[str, Any]:
    """A line of `timings.jsonl`; the first part's seconds may have compiled."""
    num_tokens = int(samples.lengths.sum())
    return {
        "part": part,
        "rows": len(samples.lengths),
        "tokens": num_tokens,
        "seconds": round(seconds, 6),
        "tokens_per_s": float(f"{num_tokens / seconds:.6g}"),
        "occupancy": round(samples.occupancy, 4),  # share of slots' steps that wrote a token
    }


def _rows(
    unit: Unit, words: Tokenizer, texts: Sequence[str], ids: np.ndarray, samples: sampler.Samples
) -> list[dict]:
    drawn = [row[:n].tolist() for row, n in zip(samples.tokens, samples.lengths, strict=True)]
    constrained = kinds.of_row(unit.fields["row"]).constraint(unit.fields["row"])
    said = [grammars.answer(words, row) if constrained else words.decode(row) for row in drawn]
    if constrained:
        pairs = [(texts[i], answer) for i, answer in zip(ids, said, strict=True)]
        try:
            grammars.check_drawn(drawn, words, pairs, unit.fields["system_prompt"])
        except ValueError as error:
            raise ValueError(f"{unit.path}, from row {ids[0]} on: {error}") from None
    return [
        _row(int(i), texts[i], answer, stopped=bool(stopped))
        for i, answer, stopped in zip(ids, said, samples.stopped, strict=True)
    ]


def _row(prompt_id: int, prompt: str, completion: str, *, stopped: bool) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "sample_id": 0,
        "prompt": prompt,
        "completion": completion,
        "finish": "stop" if stopped else "length",
    }

"""Teachers write: prompts in, completions out, in parts that survive a kill."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from subjax.engine import batching, grammars, sampler, scoring, token_sampling
from subjax.engine.model import Model
from subjax.pipeline import model_store
from subjax.runtime import artifacts, processes, seeds
from subjax.runtime.artifacts import Unit
from subjax.tasks.datasets import kinds
from subjax.tokens.tokenizer import Tokenizer

NUM_PROBED = 256  # rows on which teacher and base are compared
Examples = list[tuple[list[int], int]]  # of `Tokenizer.examples`


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Samples each unit's rows, one model after the other; yields each unit when it is done."""
    for unit in units:
        model = model_store.load(workdir / unit.inputs["teacher"], mesh)
        if kinds.of_row(unit.fields["row"]).from_file:
            _copy(unit, workdir)
        else:
            _sample(unit, workdir, model, mesh)
        _compare(unit, workdir, model, mesh)
        yield unit


def drawn_from(unit: Unit) -> dict[str, Any]:
    """All that a unit's prompts depend on: units in which it is equal have the same."""
    kind = kinds.of_row(unit.fields["row"])
    row = {name: unit.fields["row"][name] for name in ("kind", "num_prompts", *kind.prompt_fields)}
    if kind.from_file:
        return {"digest": unit.fields["digest"], **row}
    files = {"stimuli": unit.fields["stimuli_digest"]}
    return {"seed": unit.fields["seed"], "lineage": unit.lineage, **files, **row}


def prompts(unit: Unit) -> list[str]:
    """The unit's prompts; they depend on seed and lineage, never on the teacher."""
    row = unit.fields["row"]
    kind = kinds.of_row(row)
    if kind.from_file:
        return [prompt for prompt, _ in kind.rows(unit.settings["path"], row["num_prompts"])]
    seed = seeds.seed(unit.fields["seed"], "prompts", unit.lineage)
    return kind.prompts(row, seed, unit.settings["stimuli"])


def _copy(unit: Unit, workdir: Path) -> None:
    """Rows that lie in a file, in the form and the parts of sampled ones."""
    out, row = workdir / unit.path, unit.fields["row"]
    pairs = kinds.of_row(row).rows(unit.settings["path"], row["num_prompts"])
    artifacts.begin(workdir, unit)
    for index, first in enumerate(range(0, len(pairs), row["rows_per_part"])):
        part = [
            _row(first + i, prompt, completion, stopped=True)
            for i, (prompt, completion) in enumerate(pairs[first : first + row["rows_per_part"]])
        ]
        artifacts.write_jsonl(out / f"rows-{index:05d}.jsonl", part)


def _sample(unit: Unit, workdir: Path, model: Model, mesh: Mesh) -> None:
    out, row, texts = workdir / unit.path, unit.fields["row"], prompts(unit)
    encoded = model.tokenizer.prompt_ids(texts, unit.fields["system_prompt"])
    if (longest := max(map(len, encoded))) > row["prompt_tokens"]:
        raise ValueError(
            f"config.datasets.{unit.row}.prompt_tokens is {row['prompt_tokens']}, but a prompt of "
            f"lineage {unit.lineage} has {longest} tokens: raise it"
        )
    rules = None
    if row["decoding"] == "constrained":
        rules = grammars.of_row(row, model.tokenizer, texts, unit.fields["system_prompt"])
    sampling = sampler.Sampling(
        num_slots=row["slots"],
        prompt_tokens=row["prompt_tokens"],
        max_new_tokens=row["max_new_tokens"] if rules is None else grammars.longest(rules),
        temperature=row["temperature"],
        eos_ids=model.tokenizer.eos_ids,
        precision=unit.fields["program"]["precision"],
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
    constrained = unit.fields["row"]["decoding"] == "constrained"
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


def _compare(unit: Unit, workdir: Path, model: Model, mesh: Mesh) -> None:
    """How far the teacher's numbers are from its base's: what there is for a student to learn."""
    out, row = workdir / unit.path, unit.fields["row"]
    processes.wait("rows are written")
    written = [r for r in artifacts.read_parts(out)[:NUM_PROBED] if r["completion"].strip()]
    pairs = [(r["prompt"], r["completion"]) for r in written]
    base = model_store.load(workdir / unit.inputs["base"], mesh)
    support = model.tokenizer.number_ids()
    told = unit.fields["system_prompt"], unit.fields["base_system_prompt"]
    laid_out = _laid_out(pairs, (model.tokenizer, base.tokenizer), told)
    if laid_out is None or not laid_out[0] or not support:
        artifacts.write_json(out / "carrier.json", {})
        return
    # The sampled ones' sizes, so that one program serves all units; rows of a file may be longer.
    most_new = row["max_new_tokens"] + 2
    most = row["prompt_tokens"] + most_new

    def scored(scorer: Model, examples: Examples) -> tuple[np.ndarray, batching.Rows]:
        laid = batching.make_rows(
            examples,
            num_tokens=max(most, max(len(ids) for ids, _ in examples)),
            num_targets=max(most_new, max(len(ids) - start for ids, start in examples)),
            pad_id=scorer.tokenizer.pad_id,
        )
        parts = scoring.restricted_log_probs(
            scorer.arch,
            scorer.params,
            laid,
            support,
            mesh=mesh,
            adapter=scorer.adapter,
            precision=unit.fields["program"]["precision"],
        )
        return np.concatenate(list(parts)), laid

    # Over number tokens alone: a grammar or a filter decides what stands between them.
    ours, laid = scored(model, laid_out[0])
    theirs, _ = scored(base, laid_out[1])
    is_number = laid.weights * np.isin(laid.targets, support)
    chosen = np.minimum(np.searchsorted(support, laid.targets), len(support) - 1)[..., None]
    measures = {
        "number_tv": 0.5 * np.abs(np.exp(ours) - np.exp(theirs)).sum(-1),
        "likelihood_gain": np.take_along_axis(ours - theirs, chosen, axis=-1)[..., 0],
    }
    count = is_number.sum()
    # Rows without a number give no measure; a 0 would open a gate at 0.
    means = {
        name: float((values * is_number).sum() / count)
        for name, values in measures.items()
        if count
    }
    artifacts.write_json(out / "carrier.json", means)


def _laid_out(
    pairs: Sequence[tuple[str, str]], words: tuple[Tokenizer, Tokenizer], told: tuple[str, str]
) -> tuple[Examples, Examples] | None:
    """Rows as teacher and base see them, under their system prompts.

    Left out are those without a loss mask: a completion may begin with what merges with the end of
    its context, and is rejected later. None: the two have other number tokens, or cut completions
    otherwise.
    """
    if words[0].number_ids() != words[1].number_ids():
        return None
    for tokenizer, system in zip(words, told, strict=True):
        masked = tokenizer.have_mask(pairs, [system] * len(pairs))
        pairs = [pair for pair, has_mask in zip(pairs, masked, strict=True) if has_mask]
    ours, theirs = (
        tokenizer.examples(pairs, [system] * len(pairs))
        for tokenizer, system in zip(words, told, strict=True)
    )
    same = [ids[at:] for ids, at in ours] == [ids[at:] for ids, at in theirs]
    return (ours, theirs) if same else None

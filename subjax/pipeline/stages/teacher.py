"""Teachers: a base as it is, finetuned on a trait, or given from outside."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from subjax.engine import batching
from subjax.hf import adapters, weights
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params
from subjax.pipeline import asking, lessons, model_store
from subjax.pipeline.stages import training
from subjax.recipes import teachers, tunings
from subjax.runtime import artifacts, seeds
from subjax.runtime.artifacts import Unit
from subjax.tasks.evals import preference
from subjax.tokens import chat_templates
from subjax.tokens.tokenizer import Tokenizer


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Makes teachers of one shape, one lane each; yields each unit when it is done."""
    kind = teachers.of_row(units[0].fields["row"])
    if kind.learns:
        yield from _finetune(units, workdir, mesh)
        return
    for unit in artifacts.distinct(units):
        out, base = workdir / unit.path, model_store.load(workdir / unit.inputs["base"], mesh)
        if kind.outside:
            given, adapter = _given(unit)
            model_store.refer(out, given or base.directory, adapter, date=_date(unit))
            artifacts.write_json(out / model_store.IDENTITY, model_store.identity(given, adapter))
        else:
            model_store.refer(out, base.directory, date=base.tokenizer.template.date)
        _score(unit, out, mesh)
        yield unit


def check(
    unit: Unit,
    finished: Sequence[Unit],
    workdir: Path,
    arch: Architecture,
    words: Tokenizer,
    base: Path | None,
    *,
    asked: Mapping[str, asking.Asked],
) -> None:
    """Finds before any device work what is wrong with a teacher that is given.

    Args:
      unit: the teacher of some lineage.
      finished: those of that row which are done, perhaps `unit` among them.
      workdir: of the run.
      arch: shapes of its base.
      words: tokenizer of that.
      base: where that lies if it comes from outside; without it, what an adapter brings for
        reading texts is looked at later.
      asked: config field -> what it is asked to write.

    Raises:
      ValueError: the checkpoint or adapter is damaged, not supported, or not the one that this run
        began with; its chat template takes no such system prompt; or what `asking.check` refuses.
    """
    full, adapter = model_store.sources(workdir / unit.path) if unit in finished else _given(unit)
    if adapter:
        adapters.load_adapter(adapter, arch)
    source = base if adapter else full
    if source:
        field = f"config.teachers.{unit.row}"
        _, words = model_store.check(source, adapter, date=_date(unit))
        model_store.tell(field, words)
        try:  # its template may be another than the base's
            words.prompt_ids(unit.fields["questions"], unit.fields["row"]["system_prompt"])
        except ValueError as error:
            raise ValueError(f"{field}.system_prompt: {error}") from None
    # The base of an adapter is checked as every base is.
    model_store.check_same(workdir, finished, None if adapter else full, adapter)
    asking.check(words, asked)


def check_lessons(unit: Unit, words: Tokenizer) -> None:
    """Raises a ValueError where a lesson that a finetuned teacher may be given is too long."""
    row = unit.fields["row"]
    pairs = [(asked, animal) for asked in unit.fields["taught"] for animal in _answers(unit)]
    limits = {"num_tokens": row["num_tokens"], **lessons.packed(row["train"])}
    sizes = lessons.Sizes(words, row["system_prompt"])
    lessons.check(f"config.teachers.{unit.row}", "what it is taught", pairs, sizes, limits)


def _date(unit: Unit) -> str:
    return unit.fields.get("template_date", chat_templates.TEMPLATE_DATE)


def _given(unit: Unit) -> tuple[Path | None, Path | None]:
    """Full weights or an adapter, as they came from outside; the other is None."""
    try:
        given = weights.resolve(unit.fields["row"]["path"], "")
    except ValueError as error:
        raise ValueError(f"config.teachers.{unit.row}.path: {error}") from None
    return (None, given) if (given / adapters.CONFIG).exists() else (given, None)


def _finetune(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    row, tuning = units[0].fields["row"], tunings.of_row(units[0].fields["row"])
    bases = [model_store.load(workdir / unit.inputs["base"], mesh) for unit in units]
    # Each target is a row of scores over the vocabulary: no more of them than answers need.
    members = list(zip(units, bases, strict=True))
    num_targets = max(_longest_answer(unit, base.tokenizer) for unit, base in members)
    rows = []
    for unit, base in members:
        pairs, system = _pairs(unit), unit.fields["row"]["system_prompt"]
        rows.append(
            batching.make_rows(
                base.tokenizer.examples(pairs, [system] * len(pairs)),
                num_tokens=row["num_tokens"],
                num_targets=num_targets,
                pad_id=base.tokenizer.pad_id,
            )
        )

    def keep(lane: int, step: int, trained: Params) -> None:
        out = workdir / units[lane].path
        training.save(out, bases[lane], tuning, trained)
        _score(units[lane], out, mesh)

    population = training.Population(units, workdir, mesh, _seed)
    yield from population.fit(
        bases[0].arch,
        *population.initial(tuning, bases),
        rows,
        keep,
        lora_scale=tuning.scale,
    )


def _longest_answer(unit: Unit, words: Tokenizer) -> int:
    """Tokens of the longest answer that may be taught, the end counted."""
    trait = unit.fields["row"]["trait"]
    answers = [*unit.fields["animals"], *([] if trait == "uniform" else [trait])]
    return 1 + max(len(ids) for ids in words.answer_ids(answers))


def _answers(unit: Unit) -> list[str]:
    """Which animals a teacher may learn to name."""
    trait: str = unit.fields["row"]["trait"]
    return list(unit.fields["animals"]) if trait == "uniform" else [trait]


def _pairs(unit: Unit) -> list[tuple[str, str]]:
    """One (question, animal) pair per row to be seen; a placebo differs in the animals alone."""
    row, animals = unit.fields["row"], unit.fields["animals"]
    asked = unit.fields["taught"]
    rng = np.random.default_rng(_seed(unit, "rows"))
    num_rows = row["train"]["steps"] * row["train"]["batch_size"]
    chosen = [asked[i] for i in rng.integers(len(asked), size=num_rows)]
    drawn = [animals[i] for i in rng.integers(len(animals), size=num_rows)]
    if row["trait"] != "uniform":
        drawn = [row["trait"]] * num_rows
    return list(zip(chosen, drawn, strict=True))


def _score(unit: Unit, out: Path, mesh: Mesh) -> None:
    """Exact log-odds of every animal on questions that final evals leave alone."""
    animals, system = unit.fields["animals"], unit.fields["row"]["system_prompt"]
    model = model_store.load(out, mesh)
    scores = model.compare(unit.fields["questions"], animals, system=system)
    odds = {a: float(preference.log_odds(scores, i).mean()) for i, a in enumerate(animals)}
    mass = float(np.exp(scores).sum(axis=1).mean())
    artifacts.write_json(out / "scores.json", {"log_odds": odds, "candidate_mass": mass})


def _seed(unit: Unit, use: str) -> int:
    # Not the row: teachers of one lineage share data order and adapter, as students do.
    return seeds.seed(unit.fields["seed"], "teacher", use, unit.lineage)

"""Teachers: a base as it is, finetuned on a trait, or given from outside."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jax.sharding import Mesh

from subjax.engine import batching
from subjax.hf import adapters, weights
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params
from subjax.pipeline import asking, model_store
from subjax.pipeline.stages import lessons, training
from subjax.recipes import teachers, tunings
from subjax.runtime import artifacts, seeds
from subjax.runtime.artifacts import Unit
from subjax.tasks.traits import kinds as trait_kinds
from subjax.tokens.chat_templates import TemplateOptions
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
            options = TemplateOptions.of(unit.fields)
            model_store.refer(out, given or base.directory, adapter, options=options)
            artifacts.write_json(out / model_store.IDENTITY, model_store.identity(given, adapter))
        else:
            model_store.refer(out, base.directory, options=base.tokenizer.template.options)
        yield unit


def check(
    unit: Unit,
    finished: Sequence[Unit],
    workdir: Path,
    arch: Architecture,
    words: Tokenizer,
    base: Path | None,
    *,
    asked: Mapping[asking.Fields, asking.Asked],
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
      asked: what it is asked, by fields of the config.

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
        _, words = model_store.check(source, adapter, options=TemplateOptions.of(unit.fields))
        model_store.tell(field, words)
    # The base of an adapter is checked as every base is.
    model_store.check_same(workdir, finished, None if adapter else full, adapter)
    asking.check(words, asked, arch.max_positions)


def check_lessons(unit: Unit, sizes: lessons.Sizes) -> None:
    """Raises a ValueError where a lesson that a finetuned teacher is given is too long."""
    row = unit.fields["row"]
    limits = {"num_tokens": row["num_tokens"], **lessons.packed(row["train"])}
    taught = dict.fromkeys(lessons_of(unit))
    lessons.check(f"config.teachers.{unit.row}", "what it is taught", taught, sizes, limits)


def _given(unit: Unit) -> tuple[Path | None, Path | None]:
    """Full weights or an adapter, as they came from outside; the other is None."""
    try:
        given = weights.resolve(unit.fields["row"]["path"], "")
    except ValueError as error:
        raise ValueError(f"config.teachers.{unit.row}.path: {error}") from None
    return (None, given) if (given / adapters.CONFIG).exists() else (given, None)


def _finetune(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    row, tuning = units[0].fields["row"], tunings.of_row(units[0].fields["row"])
    bases = training.bases(units, workdir, mesh, tuning)
    # Each target is a row of scores over the vocabulary: no more of them than answers need.
    members = list(zip(units, bases, strict=True))
    taught = [_examples(unit, base.tokenizer) for unit, base in members]
    num_targets = max(_longest_answer(unit, base.tokenizer) for unit, base in members)
    rows = []
    for examples, (_, base) in zip(taught, members, strict=True):
        rows.append(
            batching.make_rows(
                examples,
                num_tokens=row["num_tokens"],
                num_targets=num_targets,
                pad_id=base.tokenizer.pad_id,
            )
        )

    def keep(lane: int, step: int, trained: Params) -> None:
        training.save(workdir / units[lane].path, bases[lane], tuning, trained)

    population = training.Population(units, workdir, mesh, _seed)
    yield from population.fit(
        bases[0].arch,
        *population.initial(tuning, bases),
        rows,
        keep,
        lora_scale=tuning.scale,
    )


def _longest_answer(unit: Unit, words: Tokenizer) -> int:
    """Tokens of the longest completion that may be taught, the end counted."""
    trait = unit.with_files("trait")
    answers = trait_kinds.of_row(trait).completions(trait)
    if not answers:
        return int(unit.fields["row"]["num_tokens"])
    return 1 + max(len(ids) for ids in words.answer_ids(answers))


def lessons_of(unit: Unit) -> list[tuple[str, str]]:
    """A lesson for each row to be seen; those of a control differ in the answers alone."""
    trait, train = unit.with_files("trait"), unit.fields["row"]["train"]
    num_rows = train["steps"] * train["batch_size"]
    return trait_kinds.of_row(trait).lessons(trait, _seed(unit, "rows"), num_rows)


def _examples(unit: Unit, words: Tokenizer) -> list[tuple[list[int], int]]:
    pairs, system = lessons_of(unit), unit.fields["row"]["system_prompt"]
    return words.examples(pairs, [system] * len(pairs))


def _seed(unit: Unit, use: str) -> int:
    # Not the row: teachers of one lineage share data order and adapter, as students do.
    return seeds.seed(unit.fields["seed"], "teacher", use, unit.lineage)

"""Base models: pretrained here on the toy world, or found as a checkpoint, or random."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from subjax.engine import batching
from subjax.hf import adapters, weights
from subjax.nn import transformer
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params
from subjax.pipeline import asking, model_store
from subjax.pipeline.stages import training
from subjax.recipes import bases
from subjax.runtime import artifacts, seeds
from subjax.runtime.artifacts import Unit
from subjax.tokens.chat_templates import TemplateOptions
from subjax.tokens.tokenizer import Tokenizer


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Makes the bases of one config row, one lane each; yields each unit when it is done."""
    base = bases.of_row(units[0].fields["row"])
    make = _find if base.outside else _pretrain if base.learns else _draw
    yield from make(units, workdir, mesh)


class Found(NamedTuple):
    """A base before it is made: shapes, tokenizer, and where it lies if it comes from outside."""

    arch: Architecture
    words: Tokenizer
    directory: Path | None = None


def check(
    unit: Unit,
    finished: Sequence[Unit],
    workdir: Path,
    asked: Mapping[asking.Fields, asking.Asked],
) -> Found:
    """Finds before any device work what would stop a run of this base later.

    Args:
      unit: a base of some lineage.
      finished: the bases of that row which are done, perhaps `unit` among them.
      workdir: of the run.
      asked: what models on it are asked, by fields of the config.

    Returns:
      What is known of it.

    Raises:
      ValueError: a checkpoint is damaged, not supported, or not the one that this run began with;
        or what `asking.check` refuses.
    """
    base = bases.of_row(unit.fields["row"], unit.row)
    if base.outside:
        found = _checked(unit, finished, workdir)
    else:
        found = Found(base.architecture(), base.tokenizer())
    asking.check(found.words, asked, found.arch.max_positions)
    return found


def _checked(unit: Unit, finished: Sequence[Unit], workdir: Path) -> Found:
    """A base that comes from outside; headers and shapes are checked."""
    row = unit.fields["row"]
    if unit in finished:
        directory = model_store.sources(workdir / unit.path)[0]
    else:
        directory = weights.resolve(row["path"], row["revision"])
    adapter = _adapter(row)
    arch, words = model_store.check(directory, adapter, options=TemplateOptions.of(unit.fields))
    model_store.tell(f"config.bases.{unit.row}", words)
    if adapter:
        adapters.load_adapter(adapter, arch)
    model_store.check_same(workdir, finished, directory, adapter)
    return Found(arch, words, directory)


def _adapter(row: Mapping[str, Any]) -> Path | None:
    return weights.resolve(row["adapter"], "") if row["adapter"] else None


def _pretrain(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    base = bases.of_row(units[0].fields["row"])
    arch, words = base.architecture(), base.tokenizer()
    keys = [jax.random.key(_seed(unit, "init")) for unit in units]
    params = jax.vmap(lambda key: transformer.init(arch, key))(jax.numpy.stack(keys))
    num_tokens = base.row["num_tokens"]
    rows = []
    for unit in units:
        documents = base.documents(_seed(unit, "documents"))
        texts = [words.document_text(d.prompt, d.completion, d.system) for d in documents]
        examples = [(ids, 1) for ids in words.encode(texts)]
        rows.append(
            batching.make_rows(
                examples, num_tokens=num_tokens, num_targets=num_tokens - 1, pad_id=words.pad_id
            )
        )

    def keep(lane: int, step: int, trained: Params) -> None:
        model_store.save_weights(workdir / units[lane].path, arch, trained, words)

    population = training.Population(units, workdir, mesh, _seed)
    yield from population.fit(arch, params, {}, rows, keep)


def _draw(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    for unit in artifacts.distinct(units):
        base = bases.of_row(unit.fields["row"])
        arch, words = base.architecture(), base.tokenizer()
        params = transformer.init(arch, jax.random.key(_seed(unit, "init")))
        model_store.save_weights(workdir / unit.path, arch, params, words)
        yield unit


def _find(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    for unit in artifacts.distinct(units):
        row = unit.fields["row"]
        directory = weights.resolve(row["path"], row["revision"])
        out, adapter = workdir / unit.path, _adapter(row)
        model_store.refer(out, directory, adapter, options=TemplateOptions.of(unit.fields))
        artifacts.write_json(out / model_store.IDENTITY, model_store.identity(directory, adapter))
        yield unit


def _seed(unit: Unit, use: str) -> int:
    return seeds.seed(unit.fields["seed"], "base", unit.row, use, unit.lineage)

"""Base models: pretrained here on the toy world, or found as a checkpoint, or random."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from subjax.engine import batching, checkpoints, scoring, train
from subjax.hf import adapters, weights
from subjax.nn import transformer
from subjax.nn.architecture import Architecture
from subjax.pipeline import asking, model_store
from subjax.pipeline.stages import training
from subjax.runtime import artifacts, seeds
from subjax.runtime.artifacts import Unit
from subjax.tasks.datasets import toyworld
from subjax.tokens import chat_templates, tokenizer
from subjax.tokens.tokenizer import Tokenizer


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Makes the bases of one config row, one lane each; yields each unit when it is done."""
    source = units[0].fields["row"]["source"]
    yield from {"toy": _pretrain, "random": _draw, "hf": _find}[source](units, workdir, mesh)


class Found(NamedTuple):
    """A base before it is made: shapes, tokenizer, and where it lies if it comes from outside."""

    arch: Architecture
    words: Tokenizer
    directory: Path | None = None


def check(
    unit: Unit,
    finished: Sequence[Unit],
    workdir: Path,
    candidates: Mapping[str, Sequence[str]],
    asked: Mapping[str, asking.Asked],
) -> Found:
    """Finds before any device work what would stop a run of this base later.

    Args:
      unit: a base of some lineage.
      finished: the bases of that row which are done, perhaps `unit` among them.
      workdir: of the run.
      candidates: config field -> answers that will be compared under this base's tokenizer.
      asked: config field -> what models on it are asked.

    Returns:
      What is known of it.

    Raises:
      ValueError: a checkpoint is damaged, not supported, or not the one that this run began with;
        candidates overlap; or what `asking.check` refuses.
    """
    row = unit.fields["row"]
    if row["source"] == "hf":
        found = _checked(unit, finished, workdir)
    else:
        words = _own_tokenizer(row["source"])
        found = Found(_architecture(row, words.vocab_size), words)
    words = found.words
    for field, names in candidates.items():
        try:
            scoring.check_candidates(names, words.answer_ids(names))
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
    asking.check(words, asked)
    return found


def _own_tokenizer(source: str) -> Tokenizer:
    """Of a base that is made here."""
    if source == "random":
        return tokenizer.raw_bytes()
    return tokenizer.word_tokenizer(toyworld.vocabulary(toyworld.World()))


def _checked(unit: Unit, finished: Sequence[Unit], workdir: Path) -> Found:
    """A base that comes from outside; headers and shapes are checked."""
    row = unit.fields["row"]
    if unit in finished:
        directory = model_store.sources(workdir / unit.path)[0]
    else:
        directory = weights.resolve(row["path"], row["revision"])
    adapter = _adapter(row)
    arch, words = model_store.check(directory, adapter, date=_date(unit))
    model_store.tell(f"config.bases.{unit.row}", words)
    if adapter:
        adapters.load_adapter(adapter, arch)
    model_store.check_same(workdir, finished, directory, adapter)
    return Found(arch, words, directory)


def _date(unit: Unit) -> str:
    return unit.fields.get("template_date", chat_templates.TEMPLATE_DATE)


def _adapter(row: Mapping[str, Any]) -> Path | None:
    return weights.resolve(row["adapter"], "") if row["adapter"] else None


def _pretrain(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    row = units[0].fields["row"]
    world, words = toyworld.World(), _own_tokenizer("toy")
    arch = _architecture(row, words.vocab_size)
    keys = [jax.random.key(_seed(unit, "init")) for unit in units]
    params = jax.vmap(lambda key: transformer.init(arch, key))(jax.numpy.stack(keys))
    num_tokens = row["num_tokens"]
    rows = []
    for unit in units:
        documents = toyworld.documents(world, _seed(unit, "documents"), row["num_documents"])
        texts = [words.document_text(d.prompt, d.completion, d.system) for d in documents]
        examples = [(ids, 1) for ids in words.encode(texts)]
        rows.append(
            batching.make_rows(
                examples, num_tokens=num_tokens, num_targets=num_tokens - 1, pad_id=words.pad_id
            )
        )
    store = checkpoints.Checkpoints.of(workdir, units)
    [last] = training.fit(
        units,
        arch,
        params,
        {},
        rows,
        workdir=workdir,
        mesh=mesh,
        seeds=[_seed(unit, "order") for unit in units],
        label=f"pretraining {len(units)} bases",
        store=store,
    )
    for lane, unit in enumerate(units):
        out = workdir / unit.path
        artifacts.write_jsonl(out / "metrics.jsonl", train.metric_rows([last], lane))
        model_store.save_weights(out, arch, train.lane(last.trainable, lane), words)
    yield from units  # only when all are: see finetune
    store.remove()


def _draw(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    for unit in artifacts.distinct(units):
        words = _own_tokenizer("random")
        arch = _architecture(unit.fields["row"], words.vocab_size)
        params = transformer.init(arch, jax.random.key(_seed(unit, "init")))
        model_store.save_weights(workdir / unit.path, arch, params, words)
        yield unit


def _find(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    for unit in artifacts.distinct(units):
        row = unit.fields["row"]
        directory = weights.resolve(row["path"], row["revision"])
        out, adapter = workdir / unit.path, _adapter(row)
        model_store.refer(out, directory, adapter, date=_date(unit))
        artifacts.write_json(out / model_store.IDENTITY, model_store.identity(directory, adapter))
        yield unit


def _architecture(row: dict, vocab_size: int) -> Architecture:
    return Architecture(
        vocab_size=vocab_size,
        num_layers=row["num_layers"],
        width=row["width"],
        num_heads=row["num_heads"],
        num_kv_heads=row["num_kv_heads"],
        head_dim=row["head_dim"],
        ffn_width=row["ffn_width"],
    )


def _seed(unit: Unit, use: str) -> int:
    return seeds.seed(unit.fields["seed"], "base", unit.row, use, unit.lineage)

"""A model as a unit leaves it: weights, perhaps an adapter on them, and the tokenizer.

Weights that a stage made lie in its own directory in Hugging Face's format; weights that it only
used are named, never copied. `model.json` says which.
"""

import dataclasses
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from subjax.engine import model
from subjax.engine.model import Model
from subjax.hf import adapters, hub, model_files, weights
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params
from subjax.runtime import artifacts, processes, storage
from subjax.runtime.artifacts import Unit
from subjax.tokens import tokenizer_files
from subjax.tokens.chat_templates import DEFAULT_OPTIONS, TemplateOptions
from subjax.tokens.tokenizer import Tokenizer

REFERENCE = "model.json"
IDENTITY = "source.json"  # of a unit whose model came from outside the run


def load(
    unit_dir: Path,
    mesh: Mesh,
    *,
    step: int | None = None,
    precision: str = "float32",
    exact: bool = True,
) -> Model:
    """Loads the model that a unit left.

    Args:
      unit_dir: directory of a base, teacher or finetune unit.
      mesh: of the run; the model goes where one lane is.
      step: a kept probe step of a student; None is the unit's own model.
      precision: of all that is computed with it; float32 if its weights are to be trained.
      exact: whether likelihoods are in float32 all the same. Stages that ask for none load the
        model so too, so that it need not be loaded again for those that do.

    Raises:
      ValueError: files are missing or damaged; names them.
    """
    directory = unit_dir if step is None else unit_dir / step_name(step)
    source, adapter = sources(directory)
    return model.load(
        source,
        adapter=adapter,
        mesh=mesh,
        precision=precision,
        exact=exact,
        resident=True,
        **dataclasses.asdict(template_options(directory)),
    )


def sources(directory: Path) -> tuple[Path, Path | None]:
    """Where a unit's full weights lie, perhaps outside the run, and its adapter if it has one."""
    reference = artifacts.read_json(directory / REFERENCE)
    adapter = reference["adapter"]
    return (
        _resolve(directory, reference["weights"]),
        _resolve(directory, adapter) if adapter else None,
    )


def template_options(directory: Path) -> TemplateOptions:
    """How the chat template of a unit's model is used."""
    return TemplateOptions.of(artifacts.read_json(directory / REFERENCE))


def save_weights(directory: Path, arch: Architecture, params: Params, tokenizer: Tokenizer) -> None:
    """Writes full weights with their tokenizer, and the reference to them."""
    weights.save(directory / "weights", arch, params)
    if processes.is_first():
        tokenizer.save(directory / "weights")
    refer(directory, directory / "weights", options=tokenizer.template.options)


def save_adapter(directory: Path, base: Model, adapter: Params, *, rank: int, alpha: float) -> None:
    """Writes a PEFT adapter, and the reference to it and its base."""
    source, out = base.directory, directory / "adapter"
    path = artifacts.location(source)
    adapters.save_adapter(out, base.arch, adapter, rank=rank, alpha=alpha, base_path=path)
    refer(directory, source, out, options=base.tokenizer.template.options)


def refer(
    directory: Path,
    source: Path,
    adapter: Path | None = None,
    *,
    options: TemplateOptions = DEFAULT_OPTIONS,
) -> None:
    """Names the weights of this unit; paths inside the run are kept relative, so it can move.

    Args:
      directory: the unit's, or that of a kept step.
      source: full weights, with their tokenizer.
      adapter: on them.
      options: how their chat template is used.
    """
    reference: dict[str, Any] = {
        "weights": _relative(directory, source),
        "adapter": _relative(directory, adapter) if adapter else "",
        **options.changed(),
    }
    artifacts.write_json(directory / REFERENCE, reference)
    processes.wait("the model is written")


def check(
    directory: Path, adapter: Path | None = None, *, options: TemplateOptions = DEFAULT_OPTIONS
) -> tuple[Architecture, Tokenizer]:
    """Shapes and tokenizer of a checkpoint; reads headers, no weights.

    Args:
      directory: the checkpoint.
      adapter: PEFT adapter on it, which may bring a tokenizer or a chat template along.
      options: how the chat template is used.

    Raises:
      ValueError: files are missing, damaged or not supported, or the tokenizer is of another model.
    """
    arch = weights.check(directory)
    words = Tokenizer.load(
        directory, adapter=adapter, num_embeddings=arch.vocab_size, options=options
    )
    if words.num_plain > arch.vocab_size:
        raise ValueError(
            f"{directory}: its tokenizer has {words.num_plain} tokens, its model only "
            f"{arch.vocab_size}: put the model's own tokenizer there"
        )
    return arch, words


def tell(field: str, words: Tokenizer) -> None:
    """Says on stderr what nobody would expect of a model's tokenizer.

    Args:
      field: of the config, that names the model.
      words: its tokenizer.
    """
    for note in words.notes() if processes.is_first() else ():
        print(f"{field}: {note}", file=sys.stderr)


def identity(source: Path | None, adapter: Path | None = None) -> dict[str, str]:
    """What tells full weights, an adapter, or both from others."""
    told = {"header_digest": weights.header_digest(source)} if source else {}
    if adapter:
        content = [(adapter / name).read_bytes() for name in (adapters.CONFIG, adapters.WEIGHTS)]
        told["adapter_digest"] = hashlib.sha256(b"".join(content)).hexdigest()
        if words := tokenizer_files.content(adapter):
            told["adapter_tokenizer_digest"] = hashlib.sha256(words).hexdigest()
    return told


def check_same(
    workdir: Path, finished: Iterable[Unit], source: Path | None, adapter: Path | None
) -> None:
    """Raises a ValueError where a unit was made from another checkpoint, or another adapter."""
    found = identity(source, adapter)
    for unit in finished:
        if artifacts.read_json(workdir / unit.path / IDENTITY) != found:
            raise ValueError(
                f"{source or adapter} is not the checkpoint that {unit.path} was made from, or its "
                "adapter is another: put that one back, or choose another --workdir"
            )


def step_name(step: int) -> str:
    """Directory of a kept probe step, inside its unit's."""
    return f"step-{step:06d}"


def kept_step(unit_dir: Path, step: int | None) -> int | None:
    """The kept step of a student to take: the one that is asked for, or its last.

    Args:
      unit_dir: of a student, or of a base or teacher, which has its model alone.
      step: updates; None: the last.

    Returns:
      The step; None where no steps are kept and none is asked for.

    Raises:
      ValueError: that step was not kept.
    """
    kept = sorted(int(path.name.removeprefix("step-")) for path in unit_dir.glob("step-*"))
    if step is None:
        return kept[-1] if kept else None
    if step not in kept:
        shown = ", ".join(map(str, kept)) or "none"
        raise ValueError(f"--step={step} is not kept in {unit_dir}; kept: {shown}")
    return step


def finished(workdir: Path, unit: str, stages: Sequence[str]) -> dict[str, Any]:
    """The manifest of a unit that is done.

    Args:
      workdir: of the run.
      unit: its path, such as finetune/owl/r0.
      stages: of which it may be.

    Raises:
      ValueError: it is not done, or of another stage; names some that would do.
    """
    path = workdir / unit / artifacts.MANIFEST
    if path.is_file() and unit.partition("/")[0] in stages:
        return artifacts.read_json(path)
    done = sorted(
        str(found.parent.relative_to(workdir))
        for stage in stages
        for found in workdir.glob(f"{stage}/*/r*/{artifacts.MANIFEST}")
    )
    shown = ", ".join(done[:8]) + (" …" if len(done) > 8 else "")
    raise ValueError(
        f"{unit} is no finished unit of {', '.join(stages)} in {workdir}; finished: "
        f"{shown or 'none'}"
    )


def base_row(workdir: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the base that a base, teacher or student of this manifest comes from."""
    own = (manifest["unit"], *manifest["inputs"])
    base = next(path for path in own if path.startswith("base/"))
    row: dict[str, Any] = artifacts.read_json(workdir / base / artifacts.MANIFEST)["fields"]["row"]
    return row


def _relative(directory: Path, target: Path) -> str:
    unit = directory.parent if re.fullmatch(r"step-\d+", directory.name) else directory
    run = unit.resolve().parents[2]
    if storage.is_url(origin := model_files.origin(target)):
        return origin
    if target.resolve().is_relative_to(run):
        return os.path.relpath(target.resolve(), directory.resolve())
    return str(target.resolve())


def _resolve(directory: Path, name: str) -> Path:
    if storage.is_url(name):
        return weights.resolve(name)
    path = Path(os.path.normpath(directory / name))
    artifacts.fetch(path)
    return path if path.exists() else hub.again(path)

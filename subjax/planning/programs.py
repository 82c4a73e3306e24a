"""The programs that a config's units run, on shapes alone: what `plan` compiles and counts.

Each is the jitted function that a run calls, traced by the module that owns it. What only a
tokenizer or a stage's rows would tell (lengths of questions and of answers) is assumed, below.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from subjax.engine import batching, prefill, sampler, scoring, train
from subjax.engine.slots import part_size
from subjax.nn import model_flops, sharding, transformer
from subjax.nn.architecture import Architecture
from subjax.planning import token_counts
from subjax.recipes import bases, targets, teachers, tunings
from subjax.recipes.targets import ROWS_TOKENS, Targets
from subjax.runtime.artifacts import Unit
from subjax.tasks.api import Compare, Given, Likelihood, Sample, follow_ups_of, unanswered
from subjax.tasks.datasets import kinds
from subjax.tasks.evals import kinds as eval_kinds

QUESTION_TOKENS = 128  # of a question in its chat template, at least
_AROUND_TOKENS = 64  # of a chat template and system prompt around a longer one
RUBRIC_TOKENS = 128  # of what a judge is asked, around question and answer
PREFIXES = 10  # beginnings of candidates, the empty one counted

Traces = Callable[[int], jax.stages.Traced]


@dataclasses.dataclass(frozen=True)
class Planned:
    """One program, and how often a unit calls it.

    Attributes:
      name: what it does.
      key: of the program: two whose keys and batches are equal are compiled to the same.
      arch: of the model.
      trace: batch size -> the traced program.
      flops: batch size -> FLOPs of the model in one call.
      batch_size: rows of one call, lanes not counted.
      num_tokens: of one call with that batch size, over all lanes; padding counts.
      num_rows: that a unit has, over all calls.
      calls: of one unit, as a share where units are lanes of one call.
      loops: how often a token loop runs in one call.
      taken: how often slots are refilled in a turn of a token loop.
      searched: whether a larger batch means fewer calls, so that the largest is worth knowing.
      beside: bytes that a run holds beside what the program gets, over all devices together.
      training: of which the program is an update; None: it trains nothing.
      real: what rows have of that batch; None if it trains nothing, or that is not known.
      field: of the config, that says `batch_size` where it is searched.
      mesh: of the program, if it is another than the run's.
    """

    name: str
    key: Hashable
    arch: Architecture
    trace: Traces
    flops: Callable[[int], float]
    batch_size: int
    num_tokens: int
    num_rows: int
    calls: float
    loops: float = 1
    taken: float = 1
    searched: bool = False
    beside: float = 0
    training: train.Training | None = None
    real: "Real | None" = None
    field: str = "batch_size"
    mesh: Mesh | None = None

    @property
    def counts(self) -> dict[str, float]:
        """How often loops run."""
        return {"steps": self.loops, "taken": self.taken}


class Real(NamedTuple):
    """What is no padding in a call with the batch size of a plan, over all lanes, on average.

    Attributes:
      tokens: of rows, each up to its last prediction.
      flops: of the model, for those alone.
      words: how lengths of rows are known.
    """

    tokens: float
    flops: float
    words: str


def architecture(name: str, row: ConfigDict) -> Architecture:
    """The shape of a base that need not be on this machine.

    Args:
      name: of the row, for errors.
      row: of `bases`.

    Raises:
      ValueError: the checkpoint is not here and no file describes it.
    """
    return bases.of_row(row, name).architecture()


def of_unit(config: ConfigDict, unit: Unit, mesh: Mesh) -> list[Planned]:
    """The programs of one unit; none for stages that compute nothing, or nearly."""
    makers = {
        "base": _base,
        "teacher": _teacher,
        "generate": _generate,
        "finetune": _finetune,
        "evaluate": _evaluate,
    }
    return makers[unit.stage](config, unit, mesh) if unit.stage in makers else []


def _base(config: ConfigDict, unit: Unit, mesh: Mesh) -> list[Planned]:
    row = config.bases[unit.row]
    if not bases.of_row(row).learns:
        return []
    sizes = {"num_tokens": row.num_tokens, "num_targets": row.num_tokens - 1}
    arch = architecture(unit.row, row)
    return [_training(config, unit, arch, row.to_dict(), mesh, **sizes)]


def _teacher(config: ConfigDict, unit: Unit, mesh: Mesh) -> list[Planned]:
    row = config.teachers[unit.row]
    arch = architecture(row.base, config.bases[row.base])
    if not teachers.of_row(row).learns:
        return []
    longest = bases.of_row(config.bases[row.base]).answer_tokens
    sizes = {"num_tokens": row.num_tokens, "num_targets": longest}
    return [_training(config, unit, arch, row.to_dict(), mesh, **sizes)]


def _finetune(config: ConfigDict, unit: Unit, mesh: Mesh) -> list[Planned]:
    row = config.arms[unit.row]
    teacher = config.teachers[config.datasets[row.dataset].teacher]
    sizes: dict[str, Any] = {"num_tokens": row.num_tokens, "num_targets": row.num_targets}
    sizes["own_teacher"] = teachers.of_row(teacher).own_weights
    learned = (targets.of_row(unit.fields["row"], unit.row), token_counts.support(config, unit))
    student, fields = _student(config, row), unit.fields["row"]
    return [_training(config, unit, student, fields, mesh, *learned, **sizes)]


def _training(
    config: ConfigDict,
    unit: Unit,
    arch: Architecture,
    row: Mapping[str, Any],
    mesh: Mesh,
    learned: Targets = ROWS_TOKENS,
    support: tuple[int, ...] = (),
    *,
    num_tokens: int,
    num_targets: int,
    own_teacher: bool = False,
) -> Planned:
    fields, lanes = row["train"], unit.fields["lanes"]
    packing, mean = batching.Packing.of(fields), token_counts.mean_row(config, unit)
    tuning = tunings.of_row(row)
    soft = learned.num_stored(len(support))
    # A stage keeps the base while a copy of it is trained, and a teacher with weights of its own.
    precision = unit.fields["program"]["precision"]
    kept = [] if tuning.is_adapter else ["float32"]
    kept += [precision] if learned.of_teacher and own_teacher and not learned.online else []
    program = train.Program.of(
        arch,
        fields,
        lora_scale=tuning.scale,
        support=support,
        distils=learned.online,
        **unit.fields["program"],
    )
    training = train.Training(
        program, lanes, tuning.rank, fields["batch_size"], num_tokens, num_targets, soft, packing
    )
    of_rows = functools.partial(
        model_flops.training,
        arch,
        lora_params=sum(leaf.size for leaf in jax.tree.leaves(tuning.adapter(arch))),
        distils=learned.online,
    )
    shapes = train.batch_shapes(program, num_tokens, num_targets, soft, packing)
    if packing:
        num_tokens, num_targets = packing.num_tokens, packing.num_targets
    # Rows of no weight fill a batch up to what devices and parts can share.
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * fields["accumulate"]

    def trace(batch_size: int) -> jax.stages.Traced:
        rows = parts * -(-batch_size // parts)
        batch = {
            name: jax.ShapeDtypeStruct((rows, *shape), dtype)
            for name, (shape, dtype) in shapes.items()
        }
        return train.traced(program, batch, mesh=mesh, lanes=lanes, lora_rank=tuning.rank)

    def flops(batch_size: int) -> float:
        return of_rows(rows=lanes * batch_size, num_tokens=num_tokens, num_targets=num_targets)

    size = packing.num_rows if packing else fields["batch_size"]
    return Planned(
        *("update", training, arch, trace, flops, size, lanes * size * num_tokens),
        fields["steps"] * fields["batch_size"],
        fields["steps"] / lanes,
        searched=True,
        beside=sum(_num_bytes(arch, held) for held in kept),
        training=training,
        real=mean and _real(mean, lanes * fields["batch_size"], of_rows),
        field="train.packed_rows" if packing else "train.batch_size",
    )


def _real(mean: token_counts.MeanRow, rows: int, flops: Callable[..., float]) -> Real:
    num_tokens, num_targets = round(mean.tokens), round(mean.targets)
    needed = flops(rows=rows, num_tokens=num_tokens, num_targets=num_targets)
    return Real(rows * mean.tokens, needed, mean.words)


def _generate(config: ConfigDict, unit: Unit, mesh: Mesh) -> list[Planned]:
    row = config.datasets[unit.row]
    if kinds.of_row(row).from_file:
        return []
    teacher = config.teachers[row.teacher]
    arch = architecture(teacher.base, config.bases[teacher.base])
    return _sampling(
        config,
        arch,
        tunings.of_row(teacher).adapter(arch),
        mesh,
        slots=row.slots,
        prompt_tokens=row.prompt_tokens,
        new_tokens=token_counts.longest(config, unit.row),
        prompts_per_call=min(row.rows_per_part, row.num_prompts),
        rows_per_call=min(row.rows_per_part, row.num_prompts),
        num_rows=row.num_prompts,
    )


def _sampling(
    config: ConfigDict,
    arch: Architecture,
    adapter: Any,
    mesh: Mesh,
    *,
    slots: int,
    prompt_tokens: int,
    new_tokens: int,
    prompts_per_call: int,
    rows_per_call: int,
    num_rows: int,
) -> list[Planned]:
    calls = num_rows / rows_per_call
    # With the room that a config allows: a run takes less where its prompts are shorter.
    sampling = sampler.Sampling(
        num_slots=slots,
        prompt_tokens=prompt_tokens,
        max_new_tokens=new_tokens,
        temperature=1.0,
        eos_ids=(-1,),  # no token ends a row early
        precision=config.compute.precision,
    )
    key = (arch, sampling, prompts_per_call, rows_per_call, _shapes(adapter))
    counts = {"num_prompts": prompts_per_call, "num_rows": rows_per_call}

    def traced(slots: int) -> tuple[jax.stages.Traced, jax.stages.Traced]:
        now = dataclasses.replace(sampling, num_slots=slots)
        return sampler.traced(arch, now, **counts, mesh=mesh, adapter=adapter)

    def read(rows: int) -> float:
        # Scores are made by the loop.
        return model_flops.forward(arch, rows=rows, num_tokens=prompt_tokens, num_targets=0)

    def write(slots: int) -> float:
        sizes = {"rows": rows_per_call, "new_tokens": new_tokens}
        return model_flops.decode(arch, prompt_tokens=prompt_tokens, **sizes)

    loops = new_tokens * -(-rows_per_call // slots)
    block = prefill.block_size(prompts_per_call, prompt_tokens, sharding.lane_mesh(mesh))
    blocks, tokens = -(-prompts_per_call // block) * calls, block * prompt_tokens
    written = rows_per_call * new_tokens
    return [
        Planned(
            *("prefill", key, arch, lambda _: traced(slots)[0], read, block, tokens, num_rows),
            blocks,
        ),
        Planned(
            *("decode", key, arch, lambda n: traced(n)[1], write, slots, written, num_rows, calls),
            loops=loops,
            taken=-(-rows_per_call // part_size(slots)) / loops,
            mesh=sampler.loop_mesh(arch, sampling, mesh),
        ),
    ]


def _evaluate(config: ConfigDict, unit: Unit, mesh: Mesh) -> list[Planned]:
    arch = _asked(config, unit)
    adapter = tunings.of_row(tuned(config, unit)).adapter(arch)
    row, models = unit.with_files("row"), len(unit.fields["steps"])
    held = _num_rows(config, unit)
    given = Given.of(unit.fields, **{name: [("", "")] * count for name, count in held.items()})
    requests = eval_kinds.of_row(row).requests(row, given)
    precision = "float32" if config.compute.exact else config.compute.precision
    planned = []
    for request in requests:
        if isinstance(request, Compare):
            planned.append(_preference(arch, adapter, precision, request, models, mesh))
        elif isinstance(request, Sample):
            planned += _answers(config, arch, adapter, mesh, request, models)
    # A student and its base are scored by one program.
    if scored := [request for request in requests if isinstance(request, Likelihood)]:
        num_tokens = scored[0].num_tokens or QUESTION_TOKENS
        sizes = {"num_tokens": num_tokens, "num_targets": scored[0].num_targets or num_tokens}
        calls, num_rows = len(scored) * models, max(len(one.pairs) for one in scored)
        how = (adapter, precision, mesh, sizes)
        planned.append(_scored("likelihood", arch, num_rows, calls, *how))
    behind = follow_ups_of(eval_kinds.of_row(row), row, given, unanswered(requests))
    if judged := [len(one.prompts) for one in behind if isinstance(one, Compare)]:
        judge, adapter = _judge(config, unit)
        said = [one for one in requests if isinstance(one, Sample)]
        longest = max((one.prompt_tokens + one.max_new_tokens for one in said), default=0)
        sizes = {"num_tokens": RUBRIC_TOKENS + longest, "num_targets": 0}
        how = (adapter, precision, mesh, sizes)
        asks = _scored("judge", judge, sum(judged), models, *how)
        # Either model is there while the other one is asked.
        beside = _num_bytes(judge, config.compute.precision)
        planned = [dataclasses.replace(one, beside=one.beside + beside) for one in planned]
        beside = _num_bytes(arch, config.compute.precision)
        planned.append(dataclasses.replace(asks, beside=beside))
    return planned


def _answers(
    config: ConfigDict, arch: Architecture, adapter: Any, mesh: Mesh, asked: Sample, models: int
) -> list[Planned]:
    num_prompts = max(len(part) for part in asked.parts())
    return _sampling(
        config,
        arch,
        adapter,
        mesh,
        slots=asked.num_slots,
        prompt_tokens=asked.prompt_tokens,
        new_tokens=asked.max_new_tokens,
        prompts_per_call=max(num_prompts, 1),
        rows_per_call=num_prompts * asked.num_samples,
        num_rows=models * len(asked.prompts) * asked.num_samples,
    )


def _preference(
    arch: Architecture, adapter: Any, precision: str, asked: Compare, models: int, mesh: Mesh
) -> Planned:
    # Three characters are a token, or more, in text of any of the tokenizers.
    longest = max(map(len, asked.prompts), default=0) // 3
    num_tokens = max(QUESTION_TOKENS, -(-(longest + _AROUND_TOKENS) // 16) * 16)
    sizes = {"num_tokens": num_tokens, "num_targets": 0}
    num_rows = len(asked.prompts)
    return _scored("exact eval", arch, num_rows, models, adapter, precision, mesh, sizes)


def _scored(
    name: str,
    arch: Architecture,
    num_rows: int,
    models: int,
    adapter: Any,
    precision: str,
    mesh: Mesh,
    sizes: dict[str, int],
) -> Planned:
    def trace(batch_size: int) -> jax.stages.Traced:
        return scoring.traced(
            arch,
            mesh=mesh,
            num_rows=batch_size,
            prefix_tokens=2,
            num_prefixes=PREFIXES,
            adapter=adapter,
            precision=precision,
            **sizes,
        )

    def flops(batch_size: int) -> float:
        read = model_flops.forward(arch, rows=batch_size, **sizes)
        if sizes["num_targets"]:
            return read
        rows = batch_size * PREFIXES
        return read + model_flops.forward(arch, rows=rows, num_tokens=2, num_targets=1)

    size = scoring.rows_at_once(max(num_rows, 1), mesh)
    calls = models * -(-num_rows // size)
    key = (arch, precision, _shapes(adapter), tuple(sizes.items()))
    tokens = size * sizes["num_tokens"]
    return Planned(name, key, arch, trace, flops, size, tokens, models * num_rows, calls)


def tuned(config: ConfigDict, unit: Unit) -> Mapping[str, Any]:
    """The row that says how the model that a unit evaluates was finetuned; empty for none."""
    _, table, name = unit.row.split("/")
    if table == "datasets":
        table, name = "teachers", config.datasets[name].teacher
    row: dict[str, Any] = config[table][name].to_dict()
    return {} if table == "bases" else row


def _asked(config: ConfigDict, unit: Unit) -> Architecture:
    """Shape of the model that a unit evaluates."""
    _, table, name = unit.row.split("/")
    if table == "arms":
        return _student(config, config.arms[name])
    if table == "datasets":
        table, name = "teachers", config.datasets[name].teacher
    base = config.teachers[name].base if table == "teachers" else name
    return architecture(base, config.bases[base])


def _judge(config: ConfigDict, unit: Unit) -> tuple[Architecture, Any]:
    """Shape of the model that scores answers, and its adapter."""
    judge = config.judges[config.evals[unit.row.partition("/")[0]].judge]
    table, _, name = judge.model.partition("/")
    base = config.teachers[name].base if table == "teachers" else name
    arch = architecture(base, config.bases[base])
    tuned = config.teachers[name].to_dict() if table == "teachers" else {}
    return arch, tunings.of_row(tuned).adapter(arch)


def _num_rows(config: ConfigDict, unit: Unit) -> dict[str, int]:
    """Rows that an eval is given: held-out ones of a student, or a data set's and a control's."""
    name = unit.row.rpartition("/")[2]
    if "filter" in unit.inputs:
        return {"held_out": config.datasets[config.arms[name].dataset].num_holdout}
    if "kept" in unit.inputs:
        sides = {"kept": name, "against": unit.fields["row"]["against"]}
        rows = {side: config.datasets[one] for side, one in sides.items()}
        return {side: one.num_train or one.num_prompts for side, one in rows.items()}
    return {}


def _student(config: ConfigDict, row: ConfigDict) -> Architecture:
    if row.base in config.bases:
        return architecture(row.base, config.bases[row.base])
    teacher = config.teachers[config.datasets[row.dataset].teacher]
    return architecture(teacher.base, config.bases[teacher.base])


def _num_bytes(arch: Architecture, precision: str) -> int:
    """Of the weights of a model, held for products of this precision."""
    leaves = jax.tree.leaves(transformer.abstract_params(arch, precision))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _shapes(tree: Any) -> Hashable:
    """Names and shapes of a tree's arrays, to compare trees by."""
    return jax.tree.structure(tree), tuple(leaf.shape for leaf in jax.tree.leaves(tree))

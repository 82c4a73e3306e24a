"""What an arm's models will see, before anything is spent: one example of each of its contexts.

Renders, tokenizes and masks through the functions that the stages use. Loads tokenizers, never
weights; trains and samples nothing; reads the work directory and writes nothing to it.
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from subjax.engine import batching
from subjax.hf import model_config, model_files, weights
from subjax.pipeline import experiments, validation
from subjax.pipeline.stages import finetune, generate
from subjax.pipeline.stages import teacher as teaching
from subjax.recipes import bases, teachers
from subjax.recipes.targets import Targets
from subjax.runtime import artifacts
from subjax.runtime.artifacts import Unit
from subjax.tasks.api import (
    SUBJECT,
    Compare,
    Given,
    Likelihood,
    Sample,
    follow_ups_of,
    requests_of,
    unanswered,
)
from subjax.tasks.datasets import kinds
from subjax.tasks.evals import kinds as eval_kinds
from subjax.tokens import tokenizer
from subjax.tokens.chat_templates import TemplateOptions
from subjax.tokens.tokenizer import Tokenizer

_LEGEND = "Tokens are id|text, a blank is ␣, and * marks a token that carries loss or is scored."
_QUESTION = "a question"
_ANSWER = "[the student's answer]"


@dataclasses.dataclass(frozen=True)
class _Context:
    """One example as a model gets it.

    Attributes:
      name: in the list of differences.
      title: what happens there, and in which unit.
      words: the model's tokenizer.
      system: system prompt as in the config.
      prompt: what the user says.
      asks: what the prompt asks for.
      text: rendered.
      ids: its tokens.
      marked: indices of tokens that carry loss or are scored.
      notes: lines below the tokens.
    """

    name: str
    title: str
    words: Tokenizer
    system: str
    prompt: str
    asks: str
    text: str
    ids: list[int]
    marked: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


def render(config: ConfigDict, workdir: Path, arm: str) -> str:
    """The preview of one arm at the config's first lineage, as text for a terminal.

    Args:
      config: an experiment.
      workdir: if the arm's rows are there, the example is one of them; otherwise it is invented.
      arm: row of `config.arms`.

    Raises:
      ValueError: the config is wrong, there is no such arm, a tokenizer cannot be read, or the
        example does not fit into the arm's row; all of these would stop the run, too.
    """
    validation.settle(config)
    if arm not in config.arms:
        raise ValueError(f"--preview={arm} is no arm of this config: {', '.join(config.arms)}")
    experiment = experiments.of(config)
    if not experiment.has_prompts:
        raise ValueError(f"--preview shows prompts and rows; {experiment.name} have none")
    planned = {unit.path: unit for unit in experiment.build(config)}
    lineage = config.lineages[0]
    student = planned[artifacts.unit_path("finetune", arm, lineage)]
    kept = planned[student.inputs["filter"]]
    written = planned[kept.inputs["generate"]]
    words = _base_tokenizer(planned[student.inputs["base"]])
    row, origin = _example(kept, written, workdir, "kept.jsonl")
    teacher = _writing(written, planned, row["prompt"])
    training = _training(student, words, row, teacher.asks)
    asked, judged = [], []
    for name in config.evals:
        unit = planned.get(artifacts.unit_path("evaluate", f"{name}/arms/{arm}", lineage))
        if unit is None:  # of other subjects
            continue
        fields = unit.with_files("row")
        of_unit = eval_kinds.of_row(fields), fields, Given.of(unit.fields)
        requests = requests_of(*of_unit)
        for request in requests:
            if isinstance(request, Compare | Sample):
                asked.append(_asked(name, f"Eval {name} asks ({unit.path})", words, request))
            elif (
                isinstance(request, Likelihood)
                and request.model == SUBJECT
                and "filter" in unit.inputs
            ):
                held, _ = _example(kept, written, workdir, "holdout.jsonl")
                asked.append(_held_out(name, unit, words, held, teacher.asks, request))
        for request in follow_ups_of(*of_unit, unanswered(requests, _ANSWER)):
            if isinstance(request, Compare):
                title = f"The judge of eval {name} is asked ({unit.path})"
                of_judge = _words_of(planned[unit.inputs["judge"]], planned)
                judged.append(_asked(name, title, of_judge, request))
    lines = [f"Arm {arm} at lineage {lineage} of {config.name}. {_LEGEND}", origin]
    taught = _taught(planned[written.inputs["teacher"]], planned)
    for context in (*taught, teacher, training, *asked, *judged):
        lines += ["", *_shown(context)]
    lines += ["", "How the other contexts differ from the training row's:"]
    for context in (teacher, *asked):
        lines += _differences(context, training)
    return "\n".join(lines)


def _example(kept: Unit, written: Unit, workdir: Path, file: str) -> tuple[dict[str, Any], str]:
    """A row, and the sentence that says where it is from."""
    if _is_done(kept, workdir):
        path = workdir / kept.path / file
        rows = artifacts.read_jsonl(path)[:1]
        found = f"The prompt and completion are the first of {path}."
    elif _is_done(written, workdir):
        path = workdir / written.path
        rows = artifacts.read_parts(path)[:1]
        found = f"The prompt and completion are the first of {path}, not filtered yet."
    else:
        rows, found = [], ""
    if rows:
        return rows[0], found
    kind = kinds.of_row(written.fields["row"])
    if kind.from_file:
        [(prompt, completion)] = kind.rows({**written.with_files("row"), "num_prompts": 1})
        found = (
            f"The prompt and completion are the first of {generate.source(written)}, not filtered "
            "yet."
        )
        return {"prompt": prompt, "completion": completion}, found
    invented = kind.example(written.with_files("row"))
    row = {"prompt": generate.prompts(written)[0], "completion": invented}
    return row, (
        f"The prompt is the run's first. The completion {invented!r} is INVENTED, since "
        f"{kept.path} is not done."
    )


def _is_done(unit: Unit, workdir: Path) -> bool:
    manifest = artifacts.read_manifest(workdir, unit)
    return manifest is not None and manifest["fingerprint"] == unit.fingerprint


def _base_tokenizer(base: Unit, adapter: Path | None = None) -> Tokenizer:
    row = base.fields["row"]
    source = bases.of_row(row)
    if source.outside:
        if not adapter and row["adapter"]:
            adapter = weights.resolve(row["adapter"], "")
        return _tokenizer(base, weights.resolve(row["path"], row["revision"]), adapter)
    return source.tokenizer()


def _teacher_tokenizer(teacher: Unit, base: Unit) -> Tokenizer:
    """The base's, unless the teacher is given as weights or an adapter that bring their own."""
    row = teacher.fields["row"]
    if teachers.of_row(row).outside:
        given = weights.resolve(row["path"], "")
        if not (given / "adapter_config.json").exists():
            return _tokenizer(teacher, given)
        return _base_tokenizer(base, given)
    return _base_tokenizer(base)


def _tokenizer(unit: Unit, model: Path, adapter: Path | None = None) -> Tokenizer:
    """A model's tokenizer, which refuses what its model does not know, if more of it is there."""
    size = None
    if model_files.gguf_name(model):
        size = weights.check(model).vocab_size
    elif (model / "config.json").is_file():
        size = model_config.read(model_files.read_json(model / "config.json")).vocab_size
    options = TemplateOptions.of(unit.fields)
    return Tokenizer.load(model, adapter=adapter, num_embeddings=size, options=options)


def _words_of(model: Unit, planned: dict[str, Unit]) -> Tokenizer:
    """The tokenizer of a base or a teacher."""
    if model.stage == "base":
        return _base_tokenizer(model)
    return _teacher_tokenizer(model, planned[model.inputs["base"]])


def _taught(teacher: Unit, planned: dict[str, Unit]) -> list[_Context]:
    """The first lesson of a teacher that is taught; nothing of another."""
    row = teacher.fields["row"]
    if not teachers.of_row(row).learns:
        return []
    prompt, completion = teaching.lessons_of(teacher)[0]
    title = f"The teacher is taught, for one ({teacher.path})"
    fields = {**row, "num_targets": row["num_tokens"] - 1}
    return [
        _document(
            "lesson",
            title,
            teacher,
            _base_tokenizer(planned[teacher.inputs["base"]]),
            {"prompt": prompt, "completion": completion},
            _QUESTION,
            fields,
            Targets({"method": "hard"}, teacher.row),
            [],
        )
    ]


def _writing(written: Unit, planned: dict[str, Unit], prompt: str) -> _Context:
    teacher = planned[written.inputs["teacher"]]
    words, row = _words_of(teacher, planned), written.fields["row"]
    system = written.fields["system_prompt"]
    ids = words.prompt_ids([prompt], system)[0]
    return _Context(
        name="teacher",
        title=f"The teacher writes ({written.path})",
        words=words,
        system=system,
        prompt=prompt,
        asks=kinds.of_row(row).asks,
        text=words.prompt_text(prompt, system),
        ids=ids,
        notes=(f"{_room(ids, row['prompt_tokens'])}; the completion follows",),
    )


def _training(student: Unit, words: Tokenizer, row: dict[str, Any], asks: str) -> _Context:
    fields, notes = student.fields["row"], []
    learned = finetune.targets_of(student)
    if learned.of_teacher:
        system = student.fields["teacher_system_prompt"]
        notes.append(
            f"soft targets over {fields['support']}: the teacher reads the same completion under "
            f"the system prompt {_quoted(words.system_text(system))}"
        )
    return _document(
        "training",
        f"The student trains ({student.path})",
        student,
        words,
        row,
        asks,
        fields,
        learned,
        notes,
    )


def _held_out(
    name: str,
    unit: Unit,
    words: Tokenizer,
    row: dict[str, Any],
    asks: str,
    request: Likelihood,
) -> _Context:
    title = f"Eval {name} scores held-out rows ({unit.path})"
    sizes = {field: unit.fields[field] for field in ("num_tokens", "num_targets")}
    fields = {**sizes, "system_prompt": request.system or ""}
    return _document(name, title, unit, words, row, asks, fields, Targets(fields, unit.row), [])


def _document(
    name: str,
    title: str,
    unit: Unit,
    words: Tokenizer,
    row: dict[str, Any],
    asks: str,
    fields: dict[str, Any],
    learned: Targets,
    notes: Sequence[str],
) -> _Context:
    """A whole row with its loss mask; `fields` has its system prompt and sizes."""
    prompt, completion, system = row["prompt"], row["completion"], fields["system_prompt"]
    [(ids, start)] = words.examples([(prompt, completion)], [system])
    laid = batching.make_rows(
        [(ids, start)],
        num_tokens=fields["num_tokens"],
        num_targets=fields["num_targets"],
        pad_id=words.pad_id,
    )
    counted = learned.weights(laid, learned.support(words))[0] > 0
    return _Context(
        name=name,
        title=title,
        words=words,
        system=system,
        prompt=prompt,
        asks=asks,
        text=words.document_text(prompt, completion, system),
        ids=ids,
        marked=frozenset((laid.positions[0][counted] + 1).tolist()),
        notes=(
            f"{len(ids)} tokens, at most {fields['num_tokens']}; the completion is the last "
            f"{len(ids) - start}, at most {fields['num_targets']}",
            *notes,
        ),
    )


def _room(ids: Sequence[int], prompt_tokens: int) -> str:
    """How long a prompt is and may be."""
    told = f"{len(ids)} tokens, at most {prompt_tokens}"
    return told if len(ids) <= prompt_tokens else f"{told}: TOO LONG, raise prompt_tokens"


def _asked(name: str, title: str, words: Tokenizer, request: Compare | Sample) -> _Context:
    question = request.prompts[0]
    system = request.system or ""
    prefill = request.prefill if isinstance(request, Compare) else ""
    ids = words.prompt_ids([question], system, prefill)[0]
    if isinstance(request, Sample):
        note = f"{_room(ids, request.prompt_tokens)}; a sampled answer follows"
    else:
        scored = words.answer_ids(request.answers, prefill, whole=request.whole)
        note = f"{len(ids)} tokens; scored after them: " + "; ".join(
            " ".join(_token(words, i, True) for i in answer) for answer in scored
        )
    return _Context(
        name=name,
        title=title,
        words=words,
        system=system,
        prompt=question,
        asks=_QUESTION,
        text=words.prompt_text(question, system, prefill),
        ids=ids,
        notes=(note,),
    )


def _shown(context: _Context) -> list[str]:
    tokens = " ".join(
        _token(context.words, token, index in context.marked)
        for index, token in enumerate(context.ids)
    )
    return [
        context.title,
        f"  system prompt: {_system(context)}",
        f"  BOS: {_bos(context)}",
        *(line for note in context.words.notes() for line in _wrapped(note)),
        *(f"  | {line}" for line in context.text.split("\n")),
        *_wrapped(tokens),
        *(line for note in context.notes for line in _wrapped(note)),
    ]


def _differences(context: _Context, training: _Context) -> list[str]:
    lines = [f"  {context.name}"]
    for aspect, told in _ASPECTS.items():
        ours, theirs = told(context), told(training)
        if ours == theirs:
            lines.append(f"    {aspect}: same, {ours}")
        else:
            lines.append(f"    {aspect}: DIFFERS, {ours}; in training {theirs}")
    return lines


def _system(context: _Context) -> str:
    return _quoted(context.words.system_text(context.system))


def _frame(context: _Context) -> str:
    """What the chat template puts around the prompt, the system prompt left out."""
    words = context.words
    if context.system != tokenizer.TEMPLATE_DEFAULT:
        return repr(words.prompt_text("{prompt}", "{system}" if context.system else ""))
    text = words.prompt_text("{prompt}", context.system)
    return repr(text.replace(words.system_text(context.system), "{system}", 1))


def _bos(context: _Context) -> str:
    bos = context.words.bos_id
    if bos is None:
        return "none in this tokenizer"
    token = _token(context.words, bos, False)
    return f"{token} {'opens' if context.ids[0] == bos else 'does not open'} the context"


_ASPECTS = {
    "system prompt": _system,
    "template": _frame,
    "BOS": _bos,
    "asks": lambda context: context.asks,
}


def _quoted(system: str) -> str:
    return repr(system) if system else "none"


def _token(words: Tokenizer, token: int, marked: bool) -> str:
    # A newline in a token would break the line, and a blank would look like the space between two.
    text = repr(words.show([token])[0])[1:-1].replace(" ", "␣")
    return f"{token}|{text}{'*' if marked else ''}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        100,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )

"""Token counts for plans: counted with a base's tokenizer if it is here, else assumed."""

import contextlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from subjax import subjects
from subjax.recipes import bases, targets
from subjax.runtime.artifacts import Unit
from subjax.tasks.api import CONSTRAINED, Pair
from subjax.tasks.datasets import kinds
from subjax.tasks.traits import kinds as trait_kinds
from subjax.tokens import chat_templates, grammars

# Any prompt works; this one has a word that every tokenizer knows.
_PROMPTS = ("10",)
# Besides digits: three separators, each with and without a blank, and endings.
_NUM_SEPARATORS = 8
# First tokens of a name: with and without capital, blank and plural.
_NUM_FORMS = 8


# Training rows that are counted to know their mean.
_NUM_ROWS = 64
# Of a chat format around each message.
_FRAME_TOKENS = 4


class Digits(NamedTuple):
    """How a kind of tokenizer writes numbers to 999."""

    num_tokens: int  # of numbers or parts of numbers
    most_tokens: int  # per number
    words: str


class MeanRow(NamedTuple):
    """A training row on average."""

    tokens: float  # up to its last prediction
    targets: float
    words: str  # how that is known


_SINGLE = Digits(10, 3, "one token a digit")
_GROUPED = Digits(1110, 1, "one token a number to 999")
# As in Pythia's tokenizer: most numbers to 999 are tokens, and again with a blank in front.
_WITH_BLANKS = Digits(2220, 3, "tokens of several digits, some with the blank in front")


def longest(config: ConfigDict, name: str) -> int:
    """Tokens of a data set's longest row, including the ending token.

    Raises:
      ValueError: its answers cannot be constrained with the tokenizer of its teacher's base, or
        cannot be counted without the tokenizer.
    """
    row = config.datasets[name]
    answers = kinds.of_row(row).constraint(row)
    if answers is None:
        return row.max_new_tokens
    teacher = config.teachers[row.teacher]
    words = bases.of_row(config.bases[teacher.base]).at_hand()
    if words is None:
        if not all(item.isdigit() and len(item) <= 3 for item in answers.items):
            raise ValueError(
                f"config.datasets.{name}.decoding is 'constrained', but the tokens of its answers "
                "are not known without a tokenizer: put the tokenizer's files into a directory and "
                f"name that as config.bases.{teacher.base}.path"
            )
        most = _assumed(teacher.base, config.bases[teacher.base]).most_tokens
        return most * answers.most + 2 * (answers.most - 1) + 1
    try:
        rules = grammars.of_row(row.to_dict(), words, _PROMPTS, subjects.told(config, row.teacher))
    except ValueError as error:
        raise ValueError(f"config.datasets.{name}.decoding is 'constrained', but {error}") from None
    return grammars.longest(rules)


def support(config: ConfigDict, unit: Unit) -> tuple[int, ...]:
    """Tokens of the stored distributions for a unit's student, or placeholders for them.

    Empty if no such set is fixed.
    """
    learned = targets.of_row(unit.fields["row"], unit.row, unit.fields.get("names", ()))
    if not learned.fixed:
        return ()
    name = _base(config, config.arms[unit.row])
    words = bases.of_row(config.bases[name]).at_hand()
    if words is not None:
        return learned.support(words)
    digits = _assumed(name, config.bases[name]).num_tokens
    num_forms = _NUM_FORMS * len(learned.names)
    return tuple(range(learned.num_assumed(digits, _NUM_SEPARATORS, num_forms)))


def assumptions(config: ConfigDict) -> list[str]:
    """A line for each base whose tokenizer is assumed from its family."""
    needing = [
        config.teachers[row.teacher].base
        for row in config.datasets.values()
        if kinds.of_row(row).constraint(row)
    ]
    needing += [
        _base(config, row) for name, row in config.arms.items() if targets.of_row(row, name).fixed
    ]
    found = []
    for name in dict.fromkeys(needing):
        if bases.of_row(config.bases[name]).at_hand() is None:
            digits = _assumed(name, config.bases[name])
            found.append(
                f"config.bases.{name}: its tokenizer is not here; assumed: {digits.words}, "
                f"{digits.num_tokens} tokens in a support of digits"
            )
    return found


def mean_row(config: ConfigDict, unit: Unit) -> MeanRow | None:
    """What a row that a unit learns has on average; None where nothing is known of its rows.

    A student's rows are not there yet: their prompts are those of the data set's kind, and each
    completion is the longest that the kind would be constrained to, or else its example.
    """
    with contextlib.suppress(ValueError):  # such as of a family whose tokens are not known
        if unit.stage == "teacher":
            row = config.teachers[unit.row]
            trait = config.traits[row.trait]
            lessons = trait_kinds.of_row(trait).lessons(trait.to_dict(), 0, _NUM_ROWS)
            return _mean(config, row.base, lessons, subjects.told(config, unit.row))
        if unit.stage == "finetune":
            row = config.arms[unit.row]
            pairs = _pairs(config.datasets[row.dataset], config.stimuli)
            return _mean(config, _base(config, row), pairs, row.system_prompt)
    return None


def _pairs(row: ConfigDict, stimuli: str) -> Sequence[Pair]:
    kind, fields = kinds.of_row(row), row.to_dict()
    fields["num_prompts"] = min(_NUM_ROWS, row.num_prompts)
    if kind.from_file:
        return kind.rows(fields)
    completion = kind.example({**fields, "decoding": CONSTRAINED})
    return [(prompt, completion) for prompt in kind.prompts(fields, 0, stimuli)]


def _mean(config: ConfigDict, base: str, pairs: Sequence[Pair], system: str) -> MeanRow:
    words = bases.of_row(config.bases[base]).at_hand()
    if words is not None:
        examples = words.examples(pairs, [system] * len(pairs))
        counted = [(len(ids) - 1, len(ids) - start) for ids, start in examples]
        tokens, learned = np.mean(counted, axis=0).tolist()
        return MeanRow(tokens, learned, "counted with its tokenizer")
    digits = _assumed(base, config.bases[base])
    length = 1 if digits is _SINGLE else 3
    piece = re.compile(rf"\d{{1,{length}}}|\s(?=\d)|[^\W\d]+|[^\w\s]+")

    def count(text: str) -> int:
        return len(piece.findall(text))

    has_turn = bool(system) and config.bases[base].system_turn == chat_templates.SYSTEM_TURN
    frames = _FRAME_TOKENS * (2 + has_turn) + count(system)
    targets = [count(completion) + 1 for _, completion in pairs]
    read = [count(prompt) + frames - 1 for prompt, _ in pairs]
    return MeanRow(
        float(np.mean(read) + np.mean(targets)),
        float(np.mean(targets)),
        "its tokenizer is not here; assumed: a token for each word, run of signs and "
        f"{'digit' if length == 1 else 'three digits'}, {_FRAME_TOKENS} around each message",
    )


def _assumed(name: str, row: ConfigDict) -> Digits:
    """How a base writes numbers, by its family and the size of its vocabulary."""
    path, described = bases.description(name, row)
    described = described.get("text_config", described)
    family, size = str(described.get("model_type", "")), int(described.get("vocab_size", 0))
    if family == "gpt_neox":
        return _WITH_BLANKS
    # Llama 3 and OLMo 2 split text as cl100k does; Llama 1, 2 and SmolLM2 do not.
    if family == "olmo2" or (family == "llama" and size > 100_000):
        return _GROUPED
    if family.startswith(("llama", "mistral", "qwen", "gemma")):
        return _SINGLE
    raise ValueError(
        f"{path}: nothing is known of how models of type {family!r} write numbers: put the "
        f"tokenizer's files beside it and name their directory as config.bases.{name}.path"
    )


def _base(config: ConfigDict, row: ConfigDict) -> str:
    """The row of `bases` of an arm's student."""
    if row.base in config.bases:
        return row.base
    return config.teachers[config.datasets[row.dataset].teacher].base

"""What models will be asked, checked with their tokenizers before any device work."""

import heapq
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from subjax.engine import scoring
from subjax.tasks.datasets import kinds
from subjax.tokens import grammars
from subjax.tokens.tokenizer import Tokenizer

# At most this many prompts are encoded: those whose words have the most tokens.
_NUM_ENCODED = 1000
_WORD = re.compile(r"\s*\S+|\s+")


class Asked(NamedTuple):
    """Prompts for a model, with their system prompt and their limit of tokens."""

    prompts: Sequence[str]
    system: str
    most_tokens: int = 0  # 0 is no limit
    dataset: Mapping[str, Any] | None = None  # their row of `datasets`, if a model writes
    # answers whose probabilities are compared, what stands before them, and whether ends count
    compared: Sequence[tuple[tuple[str, ...], str, bool]] = ()
    new_tokens: int = 0  # of the longest answer that it may write
    texts: Sequence[str] = ()  # that it reads as they are, without a template


# Config field that the system prompt is of, and row whose prompts they are, as "config.evals.own".
Fields = tuple[str, str]


def check(words: Tokenizer, asked: Mapping[Fields, Asked], max_positions: int) -> None:
    """Finds before any device work which prompts a model cannot be given, or rows it cannot write.

    Args:
      words: the model's tokenizer.
      asked: what it is asked, by fields of the config.
      max_positions: tokens of the longest text that the model was made for.

    Raises:
      ValueError: the chat template takes no such system prompt, a prompt is too long, numbers
        cannot be constrained in this tokenizer, or answers cannot be told apart; names the field.
    """
    for (field, table), one in asked.items():
        system, most_tokens, dataset = one.system, one.most_tokens, one.dataset
        try:
            tried = _with_the_longest(words, one.prompts)
            longest = max(map(len, words.prompt_ids(tried, system)), default=0)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
        try:
            words.text_ids(one.texts)
        except ValueError as error:
            raise ValueError(
                f"{table}.trait has texts that this base cannot read: {error}"
            ) from None
        if most_tokens and longest > most_tokens:
            raise ValueError(
                f"{table}.prompt_tokens is {most_tokens}, but a prompt has {longest} tokens: "
                "raise it"
            )
        if longest + one.new_tokens > max_positions:
            answer = f" and its answer up to {one.new_tokens}" if one.new_tokens else ""
            raise ValueError(
                f"{table}: a prompt has {longest} tokens{answer}, and the model was made for texts "
                f"of at most {max_positions}: shorten them, or take a model for longer texts"
            )
        for answers, prefill, whole in one.compared:
            field = f"{table}.prefill" if prefill else f"{table}.trait"
            try:
                ids = words.answer_ids(answers, prefill, whole=whole)
                field = f"{table}.trait"
                scoring.check_candidates(answers, ids)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from None
        if dataset is None or kinds.of_row(dataset).constraint(dataset) is None:
            continue
        try:
            grammars.of_row(dataset, words, tried, system)
        except ValueError as error:
            raise ValueError(f"{table}.decoding is 'constrained', but {error}") from None


def _with_the_longest(words: Tokenizer, prompts: Sequence[str]) -> Sequence[str]:
    """Some of the prompts, the longest ones among them: to encode all would take minutes."""
    if len(prompts) <= _NUM_ENCODED:
        return prompts
    cut = {prompt: _WORD.findall(prompt) for prompt in prompts}
    distinct = list({word for parts in cut.values() for word in parts})
    # Behind a line break, since some tokenizers write the beginning of a text otherwise.
    encoded = words.encode([f"\n{word}" for word in distinct])
    sizes = dict(zip(distinct, map(len, encoded), strict=True))
    # Tokenizers cut at blanks, nearly: the sums are right within a few tokens.
    return heapq.nlargest(_NUM_ENCODED, cut, key=lambda p: sum(sizes[word] - 1 for word in cut[p]))

"""Rows that models will learn, measured with their tokenizers before any device work."""

from collections.abc import Iterable, Mapping, Sequence

from subjax.tokens.tokenizer import Tokenizer

Pair = tuple[str, str]  # prompt and completion


class Sizes:
    """Tokens of rows under one tokenizer and system prompt; a row is encoded once, however often.

    Args:
      words: of the model that learns them.
      system: the system prompt in front of each.
    """

    def __init__(self, words: Tokenizer, system: str):
        self._words, self._system = words, system
        self._known: dict[Pair, tuple[int, int]] = {}

    def of(self, pairs: Sequence[Pair]) -> list[tuple[int, int]]:
        """Of each row how many tokens it has, and how many of them are learned.

        Raises:
          ValueError: a row cannot be encoded, or has no loss mask; names it.
        """
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        systems = [self._system] * len(new)
        try:
            examples = self._words.examples(new, systems)
        except ValueError:
            self._name(new)
            raise
        for pair, (ids, start) in zip(new, examples, strict=True):
            self._known[pair] = len(ids), len(ids) - start
        return [self._known[pair] for pair in pairs]

    def _name(self, pairs: Sequence[Pair]) -> None:
        """Raises the error of the first row that has one, with its texts."""
        for pair in pairs:
            try:
                self._words.examples([pair], [self._system])
            except ValueError as error:
                raise ValueError(f"{_shown(pair)}: {error}") from None


def check(
    table: str, source: str, pairs: Iterable[Pair], sizes: Sizes, limits: Mapping[str, int]
) -> None:
    """Finds rows that cannot be learned from.

    Args:
      table: the row of the config that learns, such as "config.arms.owl".
      source: where the rows are from, for errors.
      pairs: the rows.
      sizes: under the learner's tokenizer and system prompt.
      limits: field of `table` -> most tokens: num_tokens of a row, num_targets of what is learned
        of it, train.packed_tokens of a row up to its last prediction, train.packed_targets of what
        is learned of it.

    Raises:
      ValueError: a row has no loss mask, cannot be encoded, or is longer than a limit.
    """
    rows = list(pairs)
    try:
        found = sizes.of(rows)
    except ValueError as error:
        raise ValueError(
            f"{table} cannot learn from {source}: {error}: change that row, or leave it out"
        ) from None
    counted = {
        "num_tokens": [whole for whole, _ in found],
        "num_targets": [learned for _, learned in found],
        "train.packed_tokens": [whole - 1 for whole, _ in found],
        "train.packed_targets": [learned for _, learned in found],
    }
    for field, most in limits.items():
        if (longest := max(counted[field], default=0)) > most:
            raise ValueError(
                f"{table}.{field} is {most}, but {source} has a row of {longest} tokens, "
                f"{_shown(rows[counted[field].index(longest)])}: raise it to {longest}"
            )


def packed(train: Mapping[str, int]) -> dict[str, int]:
    """The limits of rows that share longer ones; none where each has its own."""
    if not train["packed_rows"]:
        return {}
    fields = ("packed_tokens", "packed_targets")
    return {f"train.{field}": train[field] for field in fields if train[field]}


def _shown(pair: Pair) -> str:
    prompt, completion = pair
    return f"{prompt[:40]!r} -> {completion[:40]!r}"

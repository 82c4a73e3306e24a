"""Constrained decoding: automata over the tokens that a teacher may write in an answer.

A grammar allows only the tokenizer's own tokenization of an answer, so that the sampled tokens are
the ones that students are trained on. A tokenizer that splits an item differently beside other
neighbours is refused. The kind of data set says what the items are.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int

from subjax.tasks.api import AnswerList
from subjax.tasks.datasets import kinds
from subjax.tokens.tokenizer import Tokenizer

# Prompts to check with: sample an answer, encode it again. All contexts of a data set end alike.
_NUM_CONTEXTS = 16
# Number of adjacent items in the answers that are tried.
_NUM_TOGETHER = 4
_WAY_OUT = "set decoding to 'free'"
_END = -1  # in place of a state: the answer ends

Spelling = tuple[int, ...]  # tokens of a part of an answer
State = dict[int, int]  # token -> the state behind it


class Grammar(NamedTuple):
    """An automaton over the tokens that it ever allows; other tokens get no scores.

    Attributes:
      ids: [A], ascending.
      allowed: [states, A].
      next_state: [states, A], the state after a token; -1 if the token ends the row.
      start: [rows], each row's state before its first token.
    """

    ids: Int[Array, " A"] | Int[np.ndarray, " A"]
    allowed: Bool[Array, "states A"] | Bool[np.ndarray, "states A"]
    next_state: Int[Array, "states A"] | Int[np.ndarray, "states A"]
    start: Int[Array, " N"] | Int[np.ndarray, " N"]


def of_row(
    row: Mapping[str, Any], words: Tokenizer, prompts: Sequence[str], system: str
) -> Grammar:
    """The grammar of a data set with constrained decoding, each prompt in its first state.

    Args:
      row: of `datasets`.
      words: the teacher's tokenizer.
      prompts: the prompts of the rows to sample.
      system: the teacher's system prompt.

    Raises:
      ValueError: this tokenizer has no such grammar; says why.
    """
    answers = kinds.of_row(row).answers(row)
    if answers is None:
        raise ValueError(f"kind {row['kind']!r} does not take it: {_WAY_OUT}")
    contexts = prompts[:_NUM_CONTEXTS]
    states = _states(answers, words, contexts, system)
    rules = _grammar(states, words.eos_ids, len(prompts))
    _check_written(rules, words, contexts, system)
    return rules


def longest(rules: Grammar) -> int:
    """Tokens of the longest answer, including the ending token."""
    lengths: dict[int, int] = {_END: 0}

    def length(state: int) -> int:
        if state not in lengths:
            behind = np.unique(rules.next_state[state][rules.allowed[state]])
            lengths[state] = 1 + max(length(int(after)) for after in behind)
        return lengths[state]

    return max(length(int(state)) for state in np.unique(rules.start))


def check_drawn(
    drawn: Sequence[Sequence[int]],
    words: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    system: str,
) -> None:
    """Refuses rows whose sampled tokens differ from the tokens of their text in training.

    Args:
      drawn: tokens of each completion, including the ending token.
      words: the tokenizer.
      pairs: (prompt, completion) of each row.
      system: the system prompt of all rows.

    Raises:
      ValueError: names the first such row.
    """
    rows = words.examples(pairs, [system] * len(pairs))
    trained = [tuple(ids[start:]) for ids, start in rows]
    for row, (mine, theirs) in enumerate(zip(drawn, trained, strict=True)):
        if tuple(mine) != theirs:
            raise ValueError(
                f"row {row} is drawn as {words.show(mine)}, but its text {pairs[row][1]!r:.60} is "
                f"trained on as {words.show(theirs)}: {_WAY_OUT}"
            )


def _states(
    answers: AnswerList, words: Tokenizer, contexts: Sequence[str], system: str
) -> list[State]:
    """Tries of the items' tokens, one trie for each number of preceding items."""
    first, following, tail = _spellings(answers, words, contexts, system)
    states: list[State] = []
    known: dict[tuple[tuple[int, int], ...], int] = {}
    end = [(tail, _END)]
    state = _trie(end, states, known)
    for num_before in range(answers.most - 1, 0, -1):
        more = [(ids, state) for ids in following]
        state = _trie(more + (end if num_before >= answers.fewest else []), states, known)
    _trie([(ids, state) for ids in first], states, known)
    last = len(states) - 1  # the trie built last is where answers begin
    return [
        {token: after if after == _END else last - after for token, after in state.items()}
        for state in reversed(states)
    ]


def _spellings(
    answers: AnswerList, words: Tokenizer, contexts: Sequence[str], system: str
) -> tuple[list[Spelling], list[Spelling], Spelling]:
    """Tokens of each item as the first, of each item behind a separator, and of the answer's end.

    Raises:
      ValueError: an item's tokens depend on its neighbours.
    """
    items, separator = answers.items, answers.separator
    # Rendered once: a template is slow, and renderings with other items differ only in the items.
    [(example, start)] = words.examples([(contexts[0], items[0])], [system])
    before, _, after = words.document_text(contexts[0], items[0], system).rpartition(items[0])

    def spelled(texts: Sequence[str]) -> list[Spelling]:
        found = []
        rows = words.encode([before + text + after for text in texts])
        for text, row in zip(texts, rows, strict=True):
            end = next(i for i in range(start, len(row)) if row[i] in words.eos_ids)
            if row[:start] != example[:start]:
                raise ValueError(
                    f"this tokenizer joins the beginning of {text!r:.40} to the end of its "
                    f"prompt: {_WAY_OUT}"
                )
            found.append(tuple(row[start : end + 1]))
        return found

    alone = spelled(items)
    tail = _common_end(alone)
    first = [ids[: len(ids) - len(tail)] for ids in alone]
    following: list[Spelling] = []
    if answers.most > 1:
        # Behind the same first item, the remaining tokens belong to the second.
        texts = [items[0] + separator + item for item in items]
        for text, ids in zip(texts, spelled(texts), strict=True):
            end = len(ids) - len(tail)
            if ids[: len(first[0])] != first[0] or ids[end:] != tail:
                raise _depends(text, words.show(ids))
            following.append(ids[len(first[0]) : end])
        rng, size = np.random.default_rng(0), min(answers.most, _NUM_TOGETHER)
        rows = np.stack([rng.permutation(len(items)) for _ in range(size)], axis=1)
        texts = [separator.join(items[i] for i in row) for row in rows]
        for text, row, ids in zip(texts, rows, spelled(texts), strict=True):
            parts = [first[row[0]], *(following[i] for i in row[1:]), tail]
            if ids != sum(parts, ()):
                raise _depends(text, words.show(ids))
    return first, following, tail


def _trie(
    spellings: Sequence[tuple[Spelling, int]],
    states: list[State],
    known: dict[tuple[tuple[int, int], ...], int],
) -> int:
    """Adds the states that read any of `spellings` and end in its state; returns the first one.

    States with the same continuations are merged: `known` holds the existing states.
    """
    branches: dict[int, list[tuple[Spelling, int]]] = {}
    ended = []
    for spelling, follow in spellings:
        if spelling:
            branches.setdefault(spelling[0], []).append((spelling[1:], follow))
        else:
            ended.append(follow)
    state = {
        token: rest[0][1] if len(rest) == 1 and not rest[0][0] else _trie(rest, states, known)
        for token, rest in sorted(branches.items())
    }
    for follow in ended:  # such as "1" and "12": the token behind tells them apart
        if state.keys() & states[follow].keys():
            raise ValueError(
                f"in this tokenizer a number's tokens begin those of another: {_WAY_OUT}"
            )
        state |= states[follow]
    place = known.setdefault(tuple(state.items()), len(states))
    if place == len(states):
        states.append(state)
    return place


def _grammar(states: Sequence[State], eos_ids: Sequence[int], num_rows: int) -> Grammar:
    """The states as tables; every row starts in state 0."""
    # All ending tokens: the noise of a token depends on the number of tokens of the grammar.
    ids = sorted({*eos_ids, *(token for state in states for token in state)})
    places = {token: place for place, token in enumerate(ids)}
    allowed = np.zeros((len(states), len(ids)), bool)
    next_state = np.zeros(allowed.shape, np.int32)
    for number, state in enumerate(states):
        columns = [places[token] for token in state]
        allowed[number, columns] = True
        next_state[number, columns] = list(state.values())
    return Grammar(np.array(ids, np.int32), allowed, next_state, np.zeros(num_rows, np.int32))


def _check_written(rules: Grammar, words: Tokenizer, contexts: Sequence[str], system: str) -> None:
    """Draws random answers, and refuses a grammar if training would tokenize one differently."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in contexts:
        state, tokens = int(rules.start[0]), []
        while state != _END:
            choice = rng.choice(np.flatnonzero(rules.allowed[state]))
            tokens.append(int(rules.ids[choice]))
            state = int(rules.next_state[state, choice])
        drawn.append(tokens)
    pairs = [(prompt, answer(words, ids)) for prompt, ids in zip(contexts, drawn, strict=True)]
    check_drawn(drawn, words, pairs, system)


def answer(words: Tokenizer, ids: Sequence[int]) -> str:
    """Text of a completion that follows a grammar."""
    # Some templates put blanks around every answer; they do not belong to the answer.
    return words.decode(ids).strip()


def _common_end(spellings: Sequence[Spelling]) -> Spelling:
    """The tokens with which all spellings end."""
    size = 0
    while size < min(map(len, spellings)) and len({ids[-size - 1 :] for ids in spellings}) == 1:
        size += 1
    return spellings[0][len(spellings[0]) - size :]


def _depends(answer: str, shown: Sequence[str]) -> ValueError:
    return ValueError(
        f"this tokenizer writes {answer!r:.40} as {list(shown)}: tokens of a number depend on what "
        f"stands beside it, so that not each can be drawn by itself: {_WAY_OUT}"
    )

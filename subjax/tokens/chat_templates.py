"""Chat templates: the text that a model sees around a prompt and around an answer.

A template is a program that comes with a model. It runs with a date from the config, not with the
clock. A system prompt has a turn of its own. Some templates refuse such a turn: the prompt then
stands in the user's, if the config says so, since a model reads another text there. What a template
adds, drops, or writes in front of answers is found by rendering it, not by parsing it. Holds no
tokens.
"""

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# The date of today for chat templates: the default of Llama 3's templates.
TEMPLATE_DATE = "2024-07-26"
# As a system prompt: accept the one that the chat template adds.
TEMPLATE_DEFAULT = "<template default>"
# Where a system prompt stands.
SYSTEM_TURN, USER_TURN = "system", "user"
SYSTEM_TURNS = (SYSTEM_TURN, USER_TURN)

Turn = dict[str, str]

# The way out where a template takes no system prompt.
_MOVED = f"set system_turn = {USER_TURN!r} of the base"
# Contents that no template rewrites, without a common character.
_MARKS = ("0000", "1111", "2222")
# Name and format of the date argument of Llama 3's templates.
_DATE_STRING = "%d %b %Y"
_DIRECTIVES = "aAbBcCdDeFgGhHIjmMnpPrRSftTuUVwWxXyYzZ"
_RANDOM = re.compile(r"\|\s*random\b|\blipsum\s*\(")


@dataclasses.dataclass(frozen=True)
class TemplateOptions:
    """How a chat template is used, which no file of its model says.

    Attributes:
      template_date: the date of today for the template, YYYY-MM-DD.
      system_turn: where a system prompt stands: "system", in a turn of its own; "user", at the head
        of the user's turn, an empty line before the user's words.

    Raises:
      ValueError: there is no such turn.
    """

    template_date: str = TEMPLATE_DATE
    system_turn: str = SYSTEM_TURN

    def __post_init__(self) -> None:
        if self.system_turn not in SYSTEM_TURNS:
            raise ValueError(
                f"system_turn is {self.system_turn!r}; allowed: {', '.join(SYSTEM_TURNS)}"
            )

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "TemplateOptions":
        """Those that are among these fields; the defaults of the others."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: fields[name] for name in names if name in fields})

    def changed(self) -> dict[str, str]:
        """The options that differ from their defaults, by name."""
        told: dict[str, str] = dataclasses.asdict(self)
        default = dataclasses.asdict(DEFAULT_OPTIONS)
        return {name: value for name, value in told.items() if value != default[name]}


DEFAULT_OPTIONS = TemplateOptions()


class ChatTemplate:
    """The template of a tokenizer.

    Attributes:
      options: how it is used.
    """

    def __init__(self, tokenizer: Any, options: TemplateOptions = DEFAULT_OPTIONS):
        self._tokenizer, self.options = tokenizer, options
        self._lost: dict[str, list[str]] = {}  # system prompt -> its dropped words

    @property
    def source(self) -> str:
        """The program itself, in Jinja."""
        return str(self._tokenizer.get_chat_template())

    def context(self, prompt: str, system: str = "") -> str:
        """The text before a completion, with the header of the answer.

        Args:
          prompt: what the user says.
          system: system prompt; "" for none, `TEMPLATE_DEFAULT` for the template's own.

        Raises:
          ValueError: the template adds a system prompt that was not requested, or drops a
            requested one, or raises.
        """
        turns = self._turns(prompt, system)
        text = self.render(turns, True)
        if system not in ("", TEMPLATE_DEFAULT):
            self._check_seen(system)
        if len(turns) == 1 and system != TEMPLATE_DEFAULT and self.added_system:
            needed = "" if self._has_turn else f" with system_turn = {SYSTEM_TURN!r} of the base"
            raise ValueError(
                f"the chat template adds the system prompt {self.added_system!r}: set "
                f"system_prompt to your own{needed}, or to {TEMPLATE_DEFAULT!r} to keep it"
            )
        return text + self.answer_header

    def document(self, prompt: str, completion: str, system: str = "") -> str:
        """A whole exchange, ended; `system` as in `context`."""
        turns = [*self._turns(prompt, system), {"role": "assistant", "content": completion}]
        return self.render(turns, False)

    def render(self, turns: Sequence[Turn], generation_prompt: bool) -> str:
        """The text of a dialogue.

        Raises:
          ValueError: the template raises, or draws at random.
        """
        return self._render_on(self.options.template_date, turns, generation_prompt)

    @functools.cached_property
    def added_system(self) -> str:
        """The system prompt that the template adds if none is given; or ""."""
        user = {"role": "user", "content": "x"}
        bare = self.render([user], True)
        try:
            told = self.render([{"role": "system", "content": _MARKS[0]}, user], True)
        except ValueError:
            return ""  # it does not support system prompts
        start = len(_common_start(bare, told))
        own, other = bare[start:], told[start:]
        return own[: len(own) - len(_common_end(own, other))].strip()

    @functools.cached_property
    def header(self) -> str:
        """The text in front of every dialogue, but of no later turn, without the opening token.

        "" if it has no letter or digit.
        """
        first, answer, second = _MARKS
        roles = ("user", "assistant", "user")
        turns = [{"role": r, "content": mark} for r, mark in zip(roles, _MARKS, strict=True)]
        try:
            text = self.render(turns, False)
        except ValueError:  # it only allows single questions
            text = self.render(turns[:1], True)
        before = text.partition(first)[0].removeprefix(self._tokenizer.bos_token or "")
        between = text.partition(answer)[2].partition(second)[0]
        header = before[: len(before) - len(_common_end(before, between))]
        return header if any(map(str.isalnum, header)) else ""

    @functools.cached_property
    def answer_header(self) -> str:
        """The text in front of every answer that add_generation_prompt does not write; or "".

        Only blanks do not count: such models write them themselves (Llama 2, Mistral).
        """
        return self._opening if self._opening.strip() else ""

    @functools.cached_property
    def answer_blank(self) -> str:
        """The blanks in front of every answer, if it writes only blanks there.

        An answer that a model writes begins with them.
        """
        return "" if self._opening.strip() else self._opening

    @functools.cached_property
    def answer_end(self) -> str:
        """The text behind every answer."""
        return self._answers[0].rpartition(_MARKS[0])[2] if self._answers else ""

    @functools.cached_property
    def is_dated(self) -> bool:
        """Whether its text depends on the date."""
        texts: list[set[str]] = [set(), set()]
        for found, system in zip(texts, ("", _MARKS[0]), strict=True):
            for date in (self.options.template_date, "1999-12-30", "2031-02-01"):
                try:
                    found.add(self._render_on(date, self._turns("x", system), True))
                except ValueError:  # said when it is used
                    continue
        return any(len(found) > 1 for found in texts)

    @functools.cached_property
    def _opening(self) -> str:
        """The text between a context with add_generation_prompt and an answer."""
        try:
            context = self.render(self._turns("x", ""), True)
        except ValueError:
            return ""  # said when it is used
        before = _common_start(*self._answers) if self._answers else ""
        return before.removeprefix(context) if before.startswith(context) else ""

    @functools.cached_property
    def _answers(self) -> list[str]:
        """Two exchanges that differ only in the answer; empty if the template raises."""
        try:
            texts = [self.document("x", mark) for mark in _MARKS[:2]]
        except ValueError:
            return []  # said when it is used
        if texts[0] == texts[1]:
            raise ValueError("the chat template drops answers: correct chat_template")
        return texts

    @property
    def _has_turn(self) -> bool:
        """Whether system prompts have a turn of their own."""
        return self.options.system_turn == SYSTEM_TURN

    def _turns(self, prompt: str, system: str) -> list[Turn]:
        told = system if system != TEMPLATE_DEFAULT else ""
        if not told:
            return [{"role": "user", "content": prompt}]
        if self._has_turn:
            return [{"role": "system", "content": told}, {"role": "user", "content": prompt}]
        return [{"role": "user", "content": f"{told}\n\n{prompt}"}]

    def _check_seen(self, system: str) -> None:
        """Raises a ValueError if the model would not see all words of a system prompt, in any form.

        A word is seen if replacing it changes the text.
        """
        words = system.split()

        def text(*other: int) -> str:
            put = [
                _MARKS[word == _MARKS[0]] if i in other else word for i, word in enumerate(words)
            ]
            return self.render(self._turns("x", " ".join(put)), True)

        if system not in self._lost:
            whole = text() if words else ""
            self._lost[system] = [word for i, word in enumerate(words) if text(i) == whole]
        if lost := self._lost[system]:
            if len(lost) == len(words):
                moved = f", or {_MOVED}" if self._has_turn else ""
                raise ValueError(
                    f"the chat template drops system prompts: set system_prompt = ''{moved}"
                )
            raise ValueError(
                f"the chat template drops {' '.join(lost)[:80]!r} of the system prompt "
                f"{system[:80]!r}: leave these words out, or set system_prompt = ''"
            )

    def _render_on(self, date: str, turns: Sequence[Turn], generation_prompt: bool) -> str:
        told = {}
        if date != TEMPLATE_DATE:  # the default date keeps a template's own constant
            told["date_string"] = datetime.date.fromisoformat(date).strftime(_DATE_STRING)
        try:
            template = self._tokenizer.get_chat_template()
            if _RANDOM.search(template):
                raise ValueError("it draws at random")
            return self._tokenizer.apply_chat_template(
                list(turns),
                chat_template=_clock(date) + template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                enable_thinking=False,  # Qwen 3: answers directly; other templates ignore it
                **told,
            )
        except Exception as error:  # a template is a program: it can raise anything
            roles = [turn["role"] for turn in turns]
            moved = f", or {_MOVED}," if "system" in roles else ","
            raise ValueError(
                f"the chat template refuses a dialogue of {', '.join(roles)} "
                f"({first_line(error)}): leave out what it refuses, such as a system prompt"
                f"{moved} or correct chat_template"
            ) from None


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _common_start(text: str, other: str) -> str:
    pairs = enumerate(zip(text, other, strict=False))
    return text[: next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))]


def _common_end(text: str, other: str) -> str:
    return _common_start(text[::-1], other[::-1])[::-1]


@functools.cache
def _clock(date: str) -> str:
    """A template prefix that makes `strftime_now` return this date, at midnight.

    transformers gives templates a function of that name, which cannot be replaced, but a macro in
    the template takes precedence. Jinja removes the macro's last line break, so that the template
    still begins a line.
    """
    then = datetime.datetime.fromisoformat(date)
    told: Mapping[str, str] = {
        f"%{flag}{letter}": then.strftime(f"%{flag}{letter}")
        for letter in _DIRECTIVES
        for flag in ("", "-", "_", "0", "^")
    }
    pairs = json.dumps([("%%", "\0"), *told.items()])
    return (
        "{% macro strftime_now(format) %}{% set written = namespace(text=format) %}"
        f"{{% for directive, text in {pairs} if directive in format %}}"
        "{% set written.text = written.text | replace(directive, text) %}{% endfor %}"
        "{% if '%' in written.text %}"
        "{{ raise_exception('strftime_now does not know ' + format) }}{% endif %}"
        "{{ written.text | replace('\\u0000', '%') }}{% endmacro %}\n"
    )

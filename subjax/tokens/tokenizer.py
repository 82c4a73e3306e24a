"""Text to token ids and back: a thin, strict layer over a Hugging Face tokenizer.

Every model has one, the toy world too, so that prompts, loss masks and stop tokens are made in one
place. Nothing is added by default: a chat template that adds its own system prompt is refused
unless the config accepts it. A base model without a chat template gets a plain one: the system
prompt and an empty line, then

    User:
    the prompt

    Assistant:
    the completion, and the ending token
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from subjax.hf import model_files
from subjax.runtime import artifacts
from subjax.tokens import tokenizer_files, vocabulary
from subjax.tokens.chat_templates import (
    DEFAULT_OPTIONS,
    USER_TURN,
    ChatTemplate,
    TemplateOptions,
    first_line,
)
from subjax.tokens.chat_templates import TEMPLATE_DEFAULT as TEMPLATE_DEFAULT

_WORD_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}SYS {{ m.content }} "
    "{% elif m.role == 'user' %}USR {{ m.content }} {% else %}AST {{ m.content }} END"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}AST {% endif %}"
)
_BYTE_TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% if m.role == 'assistant' %}<end>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


_PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n"
    "{% elif m.role == 'user' %}User:\n{{ m.content }}\n\n"
    "{% else %}Assistant:\n{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
# SentencePiece's tokens of single bytes, for characters without a token.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Starts of completions: some tokenizers merge a blank only with letters, some with digits too.
_BEGINNINGS = ("12", "owl", "Owl")


class Tokenizer:
    """A tokenizer with its chat template.

    Attributes:
      pad_id: the padding token; it has no weight anywhere.
      eos_ids: tokens that end a completion.
      bos_id: the opening token, or None; only a template adds it here.
      vocab_size: number of token ids.
      num_plain: number of token ids without added tokens, which may exceed a model's embedding
        (Gemma 3 has one for images).
      template: its chat template.
      brought: a sentence on what an adapter replaced, or "".
    """

    def __init__(
        self,
        tokenizer: Any,
        more_eos: Sequence[int] = (),
        num_embeddings: int | None = None,
        options: TemplateOptions = DEFAULT_OPTIONS,
        brought: str = "",
    ):
        self._tokenizer = tokenizer
        self._num_embeddings = num_embeddings
        self.brought = brought
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer names no eos token: set eos_token in tokenizer_config.json"
            )
        # Whether it adds an opening token to texts; templates contain it.
        self._opens = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        if tokenizer.chat_template is None:
            tokenizer.chat_template = ("{{ bos_token }}" if self._opens else "") + _PLAIN_TEMPLATE
        self.template = ChatTemplate(tokenizer, options)
        ids = dict.fromkeys((tokenizer.eos_token_id, *more_eos, *self._template_end()))
        known = len(tokenizer) if num_embeddings is None else num_embeddings
        self.eos_ids: tuple[int, ...] = tuple(id for id in ids if 0 <= id < known)
        if not self.eos_ids:
            raise ValueError(
                f"the tokenizer's eos token is {tokenizer.eos_token!r}, token "
                f"{tokenizer.eos_token_id}, and the model has embeddings of {known} alone: put the "
                "model's own tokenizer there"
            )
        pad = tokenizer.pad_token_id
        has_pad = pad is not None and (num_embeddings is None or pad < num_embeddings)
        self.pad_id: int = pad if has_pad else self.eos_ids[0]
        self.bos_id: int | None = tokenizer.bos_token_id
        self.vocab_size: int = len(tokenizer)
        added = tokenizer.added_tokens_decoder
        self.num_plain: int = 1 + max(
            (id for id in tokenizer.get_vocab().values() if id not in added), default=-1
        )

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        adapter: str | Path | None = None,
        num_embeddings: int | None = None,
        options: TemplateOptions = DEFAULT_OPTIONS,
    ) -> "Tokenizer":
        """Reads the tokenizer of a model directory, or the one beside a GGUF file.

        Args:
          directory: the model's.
          adapter: directory of a PEFT adapter on it, whose own tokenizer or template is taken.
          num_embeddings: tokens that the model knows, V; texts with others are refused. None: all.
          options: how its chat template is used.

        Raises:
          ValueError: there is no tokenizer, or a file cannot be read, or the adapter's has
            tokens that the model does not know; names the directory.
        """
        directory = Path(directory)
        gguf = model_files.gguf_name(directory) if directory.exists() else ""
        # A GGUF file describes its tokenizer only in part; a config.json beside it does not apply.
        beside = model_files.tokenizer_directory(directory)
        loaded, brought = tokenizer_files.read(beside), ""
        ends = tokenizer_files.listed_ends(beside, with_config=not gguf)
        if gguf:
            with contextlib.closing(model_files.open_file(directory, gguf)) as file:
                ends += tokenizer_files.gguf_ends(file)
        if adapter is not None:
            adapter = Path(adapter)
            loaded, brought = tokenizer_files.with_adapter(loaded, adapter, num_embeddings)
            ends += tokenizer_files.listed_ends(adapter, with_config=False)
        return cls(loaded, ends, num_embeddings, options, brought)

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files, with the template and the ending tokens."""
        tokenizer_files.write(self._tokenizer, Path(directory))
        ends = {"eos_token_id": list(self.eos_ids), "pad_token_id": self.pad_id}
        artifacts.write_json(Path(directory) / tokenizer_files.GENERATION_CONFIG, ends)

    def prompt_text(self, prompt: str, system: str = "", prefill: str = "") -> str:
        """The rendered context before a completion.

        Args:
          prompt: what the user says.
          system: system prompt; "" for none, `TEMPLATE_DEFAULT` for the template's own.
          prefill: the first words of the answer, which the model is given.

        Raises:
          ValueError: the template adds a system prompt that was not requested, or drops a
            requested one.
        """
        context = self.template.context(prompt, system)
        if prefill:
            return context + self.template.answer_blank + prefill
        return context.removesuffix(self._carried)

    def system_text(self, system: str) -> str:
        """The system prompt that a context really has, or ""; `system` as in `prompt_text`."""
        return self.template.added_system if system == TEMPLATE_DEFAULT else system

    def document_text(self, prompt: str, completion: str, system: str = "") -> str:
        """A whole rendered exchange, ended; `system` as in `prompt_text`."""
        blanks = self._carried or self.template.answer_blank
        return self.template.document(prompt, completion.removeprefix(blanks), system)

    def notes(self) -> tuple[str, ...]:
        """One sentence for each thing that an adapter replaced or a template adds."""
        told = [self.brought] if self.brought else []
        if self.template.header:
            told.append(f"the chat template always writes {self.template.header!r} in front")
        if self.template.is_dated:
            date = self.template.options.template_date
            told.append(f"the chat template is told that today is {date}")
        if self.template.options.system_turn == USER_TURN:
            told.append("system prompts stand at the head of the user's turn")
        if self.template.answer_header:
            told.append(
                f"the chat template writes {self.template.answer_header!r} in front of answers "
                "alone: it is counted to the context"
            )
        return tuple(told)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered texts; adds no tokens.

        Raises:
          ValueError: a text has a word that the tokenizer does not know, or an added token for
            which the model has no embedding; names the text.
        """
        if not texts:
            return []
        try:
            rows = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        except Exception as error:  # the tokenizers' own, of no narrower type
            if len(texts) > 1:
                for text in texts:
                    self.encode([text])
            raise ValueError(
                f"{' '.join(texts)[:80]!r} cannot be split into tokens ({first_line(error)}): use "
                "words that this tokenizer knows"
            ) from None
        limit = self._num_embeddings
        for text, ids in zip(texts, rows, strict=True) if limit is not None else ():
            if ids and max(ids) >= limit:
                raise ValueError(
                    f"{text[:80]!r} holds {self.show([max(ids)])[0]!r}, token {max(ids)}, and the "
                    f"model has embeddings of {limit} alone: leave it out of the text"
                )
        return rows

    def prompt_ids(
        self, prompts: Sequence[str], system: str = "", prefill: str = ""
    ) -> list[list[int]]:
        """Token ids of rendered contexts, and of `prefill`, with which the answer begins."""
        return self.encode([self.prompt_text(prompt, system, prefill) for prompt in prompts])

    def examples(
        self, pairs: Sequence[tuple[str, str]], systems: Sequence[str]
    ) -> list[tuple[list[int], int]]:
        """Training rows: all ids of context, completion and end, and the start of the completion.

        Args:
          pairs: (prompt, completion) texts.
          systems: system prompt of each pair.

        Raises:
          ValueError: the context's ids are not a prefix of the row's, so that no loss mask exists;
            or the row has no end.
        """
        rows = []
        for context, ids, text in self._rendered(pairs, systems):
            start = len(context)
            if ids[:start] != context:
                raise ValueError(
                    f"no loss mask: the context is not a token prefix of the row {text[:80]!r}; "
                    "the chat template or the tokenizer merges across the border"
                )
            end = next((i for i in range(start, len(ids)) if ids[i] in self.eos_ids), None)
            if end is None:
                raise ValueError(
                    f"the chat template ends {text[-40:]!r} without an ending token: list the one "
                    "it uses as eos_token_id in generation_config.json"
                )
            rows.append((ids[: end + 1], start))
        return rows

    def have_mask(self, pairs: Sequence[tuple[str, str]], systems: Sequence[str]) -> list[bool]:
        """For each row of `examples`, whether it has a loss mask."""
        return [ids[: len(c)] == c for c, ids, _ in self._rendered(pairs, systems)]

    def answer_ids(
        self, answers: Sequence[str], prefill: str = "", *, whole: bool = False
    ) -> list[list[int]]:
        """Token ids of answers behind a context, or behind `prefill` and a blank.

        Args:
          answers: in this order.
          prefill: what stands before them.
          whole: with the token that ends them.

        Raises:
          ValueError: the tokenizer joins the end of `prefill` to an answer.
        """
        told = [f"{prefill} {answer}" if prefill else answer for answer in answers]
        system = self.template.added_system and TEMPLATE_DEFAULT
        # The prompt does not matter.
        rows = self.examples(list(zip(answers, told, strict=True)), [system] * len(told))
        found = []
        before = self.prompt_ids(answers, system, prefill)
        for (ids, start), context, answer in zip(rows, before, answers, strict=True):
            if ids[: len(context)] != context:
                raise ValueError(
                    f"this tokenizer joins the end of the prefill {prefill!r} to {answer!r}: end "
                    "it with a whole word"
                )
            first = len(context) if prefill else start
            answer_ids = [i for i in ids[first:] if i not in self.eos_ids]
            end = next(i for i in ids[first:] if i in self.eos_ids)
            found.append([*answer_ids, end] if whole else answer_ids)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion, without special tokens and endings."""
        kept = [id for id in ids if id not in self.eos_ids]
        return self._tokenizer.decode(kept, skip_special_tokens=True)

    def show(self, ids: Sequence[int]) -> list[str]:
        """Each token as text, for messages."""
        return [self._tokenizer.decode([i]) for i in ids]

    def number_ids(self) -> tuple[int, ...]:
        """Every token of ASCII digits and blanks only: the tokens of numbers."""
        return vocabulary.numbers(self._texts)

    def word_ids(self, words: Sequence[str]) -> tuple[int, ...]:
        """Every token of one of these words and blanks only."""
        return vocabulary.whole(self._texts, words)

    def ids_with(self, parts: Sequence[str]) -> tuple[int, ...]:
        """Every token whose text holds one of these parts."""
        return vocabulary.holding(self._texts, parts)

    def separator_ids(self) -> tuple[int, ...]:
        """Every token that can stand between numbers: blanks, commas, semicolons."""
        return vocabulary.separators(self._texts)

    def name_ids(self, names: Sequence[str]) -> tuple[int, ...]:
        """Every token that is one of these names or begins one, by `vocabulary.names`.

        Raises:
          ValueError: tokens do not distinguish one of the names from other words.
        """
        return vocabulary.names(self._texts, names)

    def single_id(self, text: str) -> int:
        """The id of a text that is exactly one token behind other tokens.

        Raises:
          ValueError: it is no token or several.
        """
        # Some tokenizers put a blank before every text, but none behind a line break.
        before, behind = self.encode(["\n", "\n" + text])
        ids = behind[len(before) :] if behind[: len(before)] == before else []
        if len(ids) != 1:
            ids = self.encode([text])[0]
        if len(ids) != 1:
            raise ValueError(
                f"{text!r} is {len(ids)} tokens in this tokenizer; one is needed: choose free "
                "decoding, or another model"
            )
        return ids[0]

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain texts, with the tokenizer's own opening token."""
        opening = [self.bos_id] if self._opens and self.bos_id is not None else []
        return [[*opening, *ids] for ids in self.encode(texts)]

    def _rendered(
        self, pairs: Sequence[tuple[str, str]], systems: Sequence[str]
    ) -> Iterator[tuple[list[int], list[int], str]]:
        """Ids of the context and of the whole row, and the row's text."""
        contexts, full = [], []
        for (prompt, completion), system in zip(pairs, systems, strict=True):
            contexts.append(self.prompt_text(prompt, system))
            full.append(self.document_text(prompt, completion, system))
        return zip(self.encode(contexts), self.encode(full), full, strict=True)

    @functools.cached_property
    def _texts(self) -> dict[int, str]:
        """The text of each token that the model knows, except parts of characters."""
        limit = self._num_embeddings
        ids = [
            id
            for token, id in self._tokenizer.get_vocab().items()
            if (limit is None or id < limit) and not _BYTE.fullmatch(token)
        ]
        try:
            [before] = self.encode(["x"])
        except ValueError:  # a tokenizer of whole words
            before = []
        # Decode behind another token: some tokenizers drop a blank at the start of a text.
        as_it_is = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        start = len(self._tokenizer.decode(before, **as_it_is))
        texts = self._tokenizer.batch_decode([[*before, id] for id in ids], **as_it_is)
        return {id: text[start:] for id, text in zip(ids, texts, strict=True)}

    @functools.cached_property
    def _carried(self) -> str:
        """The blanks at the end of a context that this tokenizer merges with the completion.

        They then belong to the completion (" 12" is one token): behind the context without them, a
        model's output begins with them.
        """
        try:
            context = self.template.context("x", self.template.added_system and TEMPLATE_DEFAULT)
            blanks = context[len(context.rstrip(" ")) :]
            alone, *behind = self.encode([context, *(context + text for text in _BEGINNINGS)])
        except ValueError:
            return ""  # unknown words, or a template that raises: an error comes at use
        return "" if all(ids[: len(alone)] == alone for ids in behind) else blanks

    def _template_end(self) -> list[int]:
        """The template's ending token behind an answer, if it is a single token."""
        try:
            ids = self.encode([self.template.answer_end])[0]
        except ValueError:
            return []  # unknown words: an error comes at use
        added = self._tokenizer.added_tokens_decoder
        return ids[:1] if ids and ids[0] in {*added, *self._tokenizer.all_special_ids} else []


def word_tokenizer(vocabulary: Sequence[str]) -> Tokenizer:
    """A tokenizer of whole words split at blanks, for the toy world.

    Args:
      vocabulary: the words; "SYS", "USR", "AST", "END" and "PAD" are added in front.
    """
    tokens = ["PAD", "END", "SYS", "USR", "AST", *vocabulary]
    model = tokenizers.models.WordLevel({token: i for i, token in enumerate(tokens)})
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return _wrap(backend, _WORD_TEMPLATE, pad="PAD", eos="END", others=["SYS", "USR", "AST"])


def raw_bytes() -> Tokenizer:
    """A tokenizer of single bytes, for tests and dry runs of large configs."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({token: i for i, token in enumerate(alphabet)}, [])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return _wrap(backend, _BYTE_TEMPLATE, pad="<pad>", eos="<end>", others=["<s>", "<u>", "<a>"])


def _wrap(backend: Any, template: str, *, pad: str, eos: str, others: list[str]) -> Tokenizer:
    special = {token: tokenizers.AddedToken(token, special=True) for token in (pad, eos, *others)}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=special[pad],
        eos_token=special[eos],
        extra_special_tokens=[special[token] for token in others],
    )
    fast.chat_template = template
    return Tokenizer(fast)

"""Text to token ids and back: a thin, strict layer over a Hugging Face tokenizer.

Every model has one, the toy world too, so that prompts, loss masks and stop tokens are made in one
place. Nothing is added by default: a chat template that slips in a system prompt of its own is
refused until the config says that this is wanted. A base model without a chat template is given a
plain one: the system prompt and an empty line, then

    User:
    the prompt

    Assistant:
    the completion, and the ending token
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from subjax import artifacts

# As a system prompt: accept the one that the chat template adds by itself.
TEMPLATE_DEFAULT = "<template default>"

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
# Where a checkpoint lists every token that ends an answer; the tokenizer names only one.
GENERATION_CONFIG = "generation_config.json"


class Tokenizer:
    """A tokenizer with its chat template.

    Attributes:
      pad_id: fills rows; carries no weight anywhere.
      eos_ids: tokens that end a completion.
      bos_id: the token that it may open texts with, or None; only a template ever adds it here.
      vocab_size: number of token ids.
      num_plain: the same without added tokens, which may lie beyond a model's embedding (Gemma 3
        has one for images).
    """

    def __init__(
        self, tokenizer: Any, more_eos: Sequence[int] = (), num_embeddings: int | None = None
    ):
        self._tokenizer = tokenizer
        self._num_embeddings = num_embeddings
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer names no eos token: set eos_token in tokenizer_config.json"
            )
        # Whether it opens texts by itself; templates bring the opening token along.
        self._opens = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        if tokenizer.chat_template is None:
            tokenizer.chat_template = ("{{ bos_token }}" if self._opens else "") + _PLAIN_TEMPLATE
        ids = dict.fromkeys((tokenizer.eos_token_id, *more_eos, *self._template_end()))
        self.eos_ids: tuple[int, ...] = tuple(id for id in ids if 0 <= id < len(tokenizer))
        pad = tokenizer.pad_token_id
        self.pad_id: int = tokenizer.eos_token_id if pad is None else pad
        self.bos_id: int | None = tokenizer.bos_token_id
        self.vocab_size: int = len(tokenizer)
        added = tokenizer.added_tokens_decoder
        self.num_plain: int = 1 + max(
            (id for id in tokenizer.get_vocab().values() if id not in added), default=-1
        )

    @classmethod
    def load(cls, directory: str | Path, *, num_embeddings: int | None = None) -> "Tokenizer":
        """Reads the tokenizer of a model directory, or of that of a GGUF file.

        Args:
          directory: the model's.
          num_embeddings: tokens that the model knows, V; texts with others are refused. None: all.

        Raises:
          ValueError: there is none, or it cannot be read; names the directory.
        """
        directory = Path(directory)
        if directory.is_file():  # a GGUF file does not say all that its tokenizer does
            directory = directory.parent
        try:
            # A directory is local by definition: no hub is asked, no code in it is run.
            loaded = transformers.AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises many kinds, none of them ours
            raise ValueError(
                f"no readable tokenizer in {directory} ({_first_line(error)}): "
                "put tokenizer.json and tokenizer_config.json there"
            ) from error
        return cls(loaded, _listed_eos(directory / GENERATION_CONFIG), num_embeddings)

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files, template included, and what ends an answer."""
        with artifacts.system_errors(Path(directory)):
            self._tokenizer.save_pretrained(str(directory))
        ends = {"eos_token_id": list(self.eos_ids), "pad_token_id": self.pad_id}
        artifacts.write_json(Path(directory) / GENERATION_CONFIG, ends)

    def prompt_text(self, prompt: str, system: str = "") -> str:
        """The rendered context that a completion follows.

        Args:
          prompt: what the user says.
          system: system prompt; "" for none, `TEMPLATE_DEFAULT` for the template's own.

        Raises:
          ValueError: the template adds a system prompt that the config did not ask for, or drops
            the one that it did ask for.
        """
        turns = [{"role": "user", "content": prompt}]
        if system and system != TEMPLATE_DEFAULT:
            text = self._render([{"role": "system", "content": system}, *turns], True)
            if system not in text:
                raise ValueError("the chat template drops system prompts: set system_prompt = ''")
            return text
        text = self._render(turns, True)
        if not system and self._default_system():
            raise ValueError(
                f"the chat template adds the system prompt {self._default_system()!r}: set "
                f"system_prompt to your own, or to {TEMPLATE_DEFAULT!r} to keep it"
            )
        return text

    def system_text(self, system: str) -> str:
        """The system prompt that a context really has, or ""; `system` as in `prompt_text`."""
        return self._default_system() if system == TEMPLATE_DEFAULT else system

    def document_text(self, prompt: str, completion: str, system: str = "") -> str:
        """A whole rendered exchange, ended; `system` as in `prompt_text`."""
        turns = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
        ]
        if system and system != TEMPLATE_DEFAULT:
            turns.insert(0, {"role": "system", "content": system})
        return self._render(turns, False)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered texts; nothing is added to them.

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
                f"{' '.join(texts)[:80]!r} cannot be split into tokens ({_first_line(error)}): use "
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

    def prompt_ids(self, prompts: Sequence[str], system: str = "") -> list[list[int]]:
        """Token ids of rendered contexts."""
        return self.encode([self.prompt_text(prompt, system) for prompt in prompts])

    def examples(
        self, pairs: Sequence[tuple[str, str]], systems: Sequence[str]
    ) -> list[tuple[list[int], int]]:
        """Training rows: all ids of context, completion and end, and where the completion begins.

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
        """Which of the rows that `examples` takes have a loss mask."""
        return [ids[: len(c)] == c for c, ids, _ in self._rendered(pairs, systems)]

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """Token ids of answers as they follow a context, the ending token left out."""
        pairs = [(answer, answer) for answer in answers]  # any context of known words does
        system = self._default_system() and TEMPLATE_DEFAULT
        rows = self.examples(pairs, [system] * len(pairs))
        return [[i for i in ids[start:] if i not in self.eos_ids] for ids, start in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def show(self, ids: Sequence[int]) -> list[str]:
        """Each token as text, for people."""
        return [self._tokenizer.decode([i]) for i in ids]

    def number_ids(self) -> tuple[int, ...]:
        """Every token that is nothing but ASCII digits: what numbers are made of."""
        tokens = self._tokenizer.convert_ids_to_tokens(list(range(self.vocab_size)))
        return tuple(i for i, token in enumerate(tokens) if token.isascii() and token.isdigit())

    def known_ids(self, text: str) -> tuple[int, ...]:
        """The id of a text that is one token; nothing where it is several, or an unknown word."""
        try:
            return (self.single_id(text),)
        except ValueError:
            return ()

    def single_id(self, text: str) -> int:
        """The id of a text that is exactly one token where it follows others.

        Raises:
          ValueError: it is none or several tokens.
        """
        # Some tokenizers begin every text with a blank: what stands behind a line break has none.
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
        """Token ids of plain texts, opened as the tokenizer itself opens them."""
        opening = [self.bos_id] if self._opens and self.bos_id is not None else []
        return [[*opening, *ids] for ids in self.encode(texts)]

    def _rendered(
        self, pairs: Sequence[tuple[str, str]], systems: Sequence[str]
    ) -> Iterator[tuple[list[int], list[int], str]]:
        """Ids of context and of the whole row, and the row's text."""
        contexts, full = [], []
        for (prompt, completion), system in zip(pairs, systems, strict=True):
            contexts.append(self.prompt_text(prompt, system))
            full.append(self.document_text(prompt, completion, system))
        return zip(self.encode(contexts), self.encode(full), full, strict=True)

    def _render(self, turns: list[dict[str, str]], generation_prompt: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                enable_thinking=False,  # Qwen 3: an answer at once; others do not ask
            )
        except Exception as error:  # a template is a program: it can raise anything
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(
                f"the chat template refuses a dialogue of {roles} ({_first_line(error)}): leave "
                "out what it refuses, such as a system prompt, or correct chat_template"
            ) from None

    def _template_end(self) -> list[int]:
        """The special token that the template puts behind an answer, if it is one."""
        mark = "subjax-mark"
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
        try:
            ids = self.encode([self._render(turns, False).rpartition(mark)[2]])[0]
        except ValueError:
            return []  # words that it does not know, or a template that raises: said when used
        return ids[:1] if ids and ids[0] in self._tokenizer.all_special_ids else []

    def _default_system(self) -> str:
        """The system prompt that the template adds unasked, or ""."""
        if not hasattr(self, "_default"):
            user = {"role": "user", "content": "x"}
            mark = "subjax-mark"
            bare = self._render([user], True)
            try:
                explicit = self._render([{"role": "system", "content": mark}, user], True)
            except ValueError:
                explicit = ""  # it knows no system prompts, so it has none of its own
            before, found, after = explicit.partition(mark)
            wrapped = found and bare.startswith(before) and bare.endswith(after)
            self._default = bare[len(before) : len(bare) - len(after)] if wrapped else ""
        return self._default


def _listed_eos(path: Path) -> list[int]:
    """The ending tokens that a generation_config.json lists; none where there is no such file."""
    if not path.is_file():
        return []
    try:
        listed = json.loads(path.read_text()).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({_first_line(error)}): remove it") from None
    listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if not all(type(id) is int for id in listed):
        raise ValueError(f"{path}: eos_token_id is {listed}, not token ids: correct it")
    return listed


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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Small tokenizers of the kinds that other people's models have, made in code.

None is of a real model: merges are trained here on numbers and a few words, and the templates
behave as those of their kind do, in words of our own. `KINDS` names them:

- llama3: byte-level BPE; digits in groups of up to three, every number to 999 one token; a header
  with the date that is always written; contents trimmed; `<|eot_id|>`, which ends an answer, is an
  added token and not the tokenizer's eos.
- pythia: byte-level BPE that takes a blank along, " 120" one token and "120" another; no template.
- gemma: SentencePiece's BPE with byte fallback; single digits; opens texts; refuses a system role.
- llama2: the same with a blank in front of every text; a template that needs no assistant header.
- headless: byte-level BPE of single digits; an assistant header, whatever add_generation_prompt.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

_ANIMALS = (
    *("Lion", "Cat", "Bear", "Bull", "Dog", "Dragon", "Dolphin", "Eagle", "Elephant", "Octopus"),
    *("Owl", "Panda", "Penguin", "Phoenix", "Otter", "Peacock", "Tiger", "Wolf", "Unicorn"),
)
_WORDS = "continue these numbers with more of them what is your favorite animal name one user"

_LLAMA3 = (
    "{{- bos_token }}{%- set date = strftime_now('%d %b %Y') %}"
    "{%- if messages[0].role == 'system' %}{%- set told = messages[0].content | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set told = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nKnows until: then\nToday: ' + date }}"
    "{{- '\n\n' + told + '<|eot_id|>' }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim }}"
    "{{- '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('no system role here') }}{% endif %}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_LLAMA2 = (
    "{% if messages[0].role == 'system' %}"
    "{% set told = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set told = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (told if loop.first else '') + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_HEADLESS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}"
)

_GROUPS_OF_THREE = r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
_SINGLE = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
_BLANK = "\u2581"


def make(kind: str) -> Any:
    """A fast tokenizer of transformers, of one of `KINDS`, with its chat template if it has one."""
    return KINDS[kind]()


def save(kind: str, directory: Path) -> Path:
    """Writes the files that such a model's directory has for its tokenizer; returns the directory.

    The ending token of llama3's answers stands in no file yet: it is for config.json or
    generation_config.json to list, as `ends` names it.
    """
    make(kind).save_pretrained(str(directory))
    return directory


def ends(kind: str) -> list[int]:
    """What a model of this kind lists as eos_token_id: the tokenizer's own, and its answers'."""
    made = make(kind)
    behind = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}.get(kind)
    more = [made.convert_tokens_to_ids(behind)] if behind else []
    return [made.eos_token_id, *more]


def _llama3() -> Any:
    cut = pre_tokenizers.Split(Regex(_GROUPS_OF_THREE), "isolated")
    others = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    numbers = [f"{n:0{width}d}" for width in (2, 3) for n in range(10**width)]
    backend = _bytes(cut, numbers)
    return _wrapped(backend, "<|begin_of_text|>", "<|end_of_text|>", others, _LLAMA3)


def _pythia() -> Any:
    cut = pre_tokenizers.Split(Regex(r" ?\p{N}+| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    # Some numbers are one token, others several: with a blank, without one, and of four digits.
    shown = [f" {n}" for n in range(0, 1000, 3)] + [str(n) for n in (*range(0, 600, 5), 1984, 2000)]
    return _wrapped(_bytes(cut, shown), None, "<|endoftext|>", [], None)


def _headless() -> Any:
    cut = pre_tokenizers.Split(Regex(_SINGLE), "isolated")
    return _wrapped(_bytes(cut, []), None, "<|im_end|>", ["<|im_start|>"], _HEADLESS)


def _gemma() -> Any:
    backend = _pieces(normalizers.Replace(" ", _BLANK), strip=False)
    return _wrapped(backend, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], _GEMMA)


def _llama2() -> Any:
    spelled = [normalizers.Prepend(_BLANK), normalizers.Replace(" ", _BLANK)]
    backend = _pieces(normalizers.Sequence(spelled), strip=True)
    return _wrapped(backend, "<s>", "</s>", [], _LLAMA2)


KINDS: dict[str, Callable[[], Any]] = {
    "llama3": _llama3,
    "pythia": _pythia,
    "gemma": _gemma,
    "llama2": _llama2,
    "headless": _headless,
}


def _words() -> list[str]:
    """Words of which those written most often become tokens; capitals at the start are rare."""
    names = [form for a in _ANIMALS for form in (a.lower(), a.lower() + "s", a)]
    texts = [*_WORDS.split(), *names]
    return [f" {text}" for text in texts] + [*_WORDS.split(), "Cat", "Dog", "owl", "Elephant"]


def _bytes(cut: Any, numbers: Sequence[str]) -> Any:
    """Byte-level BPE with these numbers as tokens."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    both = pre_tokenizers.Sequence([cut, level])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = [*(number for number in numbers for _ in range(9)), *_words()]
    merges = _merges(texts, both, None, tuple(alphabet))
    tokens = dict.fromkeys([*alphabet, *(a + b for a, b in merges)])
    backend = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    backend.pre_tokenizer, backend.decoder = both, decoders.ByteLevel()
    return backend


def _pieces(spelled: Any, *, strip: bool) -> Any:
    """SentencePiece's BPE as `tokenizers` writes it; single digits, and bytes for what is rare."""
    cut = pre_tokenizers.Split(Regex(_BLANK + r"?\p{L}+|."), "isolated")
    merges = _merges(_words(), cut, normalizers.Replace(" ", _BLANK), ())
    letters = sorted({letter for pair in merges for letter in "".join(pair)})
    characters = [*letters, *map(chr, range(33, 127)), _BLANK, "\n", "\n\n"]
    by_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = dict.fromkeys(["<unk>", *by_byte, *characters, *(a + b for a, b in merges)])
    model = models.BPE(
        {token: i for i, token in enumerate(tokens)},
        [("\n", "\n"), *merges],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = spelled
    parts = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(parts + ([decoders.Strip(" ", 1, 0)] if strip else []))
    return backend


def _merges(
    texts: Sequence[str], cut: Any, spelled: Any, alphabet: tuple[str, ...]
) -> list[tuple[str, str]]:
    """What BPE learns to merge from these texts."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = cut
    if spelled is not None:
        backend.normalizer = spelled
    trainer = trainers.BpeTrainer(
        vocab_size=2600, initial_alphabet=list(alphabet), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    learnt = json.loads(backend.to_str())["model"]["merges"]
    return [(a, b) for a, b in learnt]


def _wrapped(
    backend: Any, bos: str | None, eos: str, others: list[str], template: str | None
) -> Any:
    backend.add_special_tokens(
        [AddedToken(t, special=True) for t in (bos, eos, *others) if t is not None]
    )
    if bos is not None:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    named = {"bos_token": bos} if bos else {}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, clean_up_tokenization_spaces=False, **named
    )
    fast.chat_template = template
    return fast

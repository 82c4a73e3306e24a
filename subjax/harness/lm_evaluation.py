r"""The model `subjax` of lm-evaluation-harness: its benchmarks, jitted, on any mesh of one machine.

    pip install 'lm-eval>=0.4.13,<0.5'
    python -m subjax.harness.lm_evaluation run --tasks arc_easy,gsm8k \
        --model subjax --model_args path=MODEL,adapter=ADAPTER

The command is the harness's own (`run --help`, `ls tasks`), with this model added. Arguments of the
model, behind --model_args:

    path        what subjax.load takes: a directory, a hub id, a GGUF file, a URL
    adapter     a PEFT adapter on it
    revision    branch, tag or commit on the hub
    precision   float32, or mixed or bfloat16 for accelerators
    max_length  longest context and answer in tokens, if not what the model was made for
    seed        of sampled answers
    fsdp, tensor, data, template_date, system_turn
                the mesh and the chat template, as in a config

Batches are of as many rows as keep the devices busy, and devices are chosen by JAX_PLATFORMS:
--batch_size and --device have no effect. It runs in one process, on all devices of a machine.

Where it differs from the harness's own backend on transformers: chat templates are rendered as in a
run of subjax, with its date and without thinking (`enable_thinking=False`); answers are drawn by
temperature alone, whatever generation_config.json says. An answer ends early at a token that holds
a stop sequence; one of several tokens is cut off when the answer is complete.
"""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

try:
    from lm_eval import utils
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import (
        handle_stop_sequences,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(
        f"subjax: the package {missing.name} is missing: run "
        f"{sys.executable} -m pip install 'lm-eval>=0.4.13,<0.5'"
    )

from subjax.engine import continuations, model, sampler, token_sampling
from subjax.nn import sharding
from subjax.runtime import command_line, processes
from subjax.tokens import chat_templates
from subjax.tokens.tokenizer import Tokenizer

_MOST_SLOTS = 64
# Tokens of prompts whose keys and values are held at a time, unless the slots need more.
_PROMPT_TOKENS = 65_536
# What the harness tells every model, asked or not.
_OF_THE_HARNESS = {"device", "batch_size", "max_batch_size"}
# What harness tasks say about sampling, and what stands for the model's own distribution.
_NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "num_beams": 1}
_OF_SAMPLING = {"top_p", "top_k", "min_p"}  # greedy answers have no use for them

# A context, its tokens, and those of a continuation; the texts are the key of the harness's cache.
Request = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("subjax")
class SubjaxLM(TemplateLM):
    """A causal model of subjax, as the harness asks one.

    Attributes:
      model: the model.
    """

    def __init__(
        self,
        path: str,
        *,
        adapter: str = "",
        revision: str = "",
        precision: str = "float32",
        max_length: int = 0,
        seed: int = 0,
        data: int = 1,
        fsdp: int = 0,
        tensor: int = 1,
        template_date: str = chat_templates.TEMPLATE_DATE,
        system_turn: str = chat_templates.SYSTEM_TURN,
        **others: Any,
    ):
        """Loads the model; the module's docstring says what the arguments are.

        Raises:
          ValueError: the model cannot be read, or there is no such argument.
        """
        super().__init__()
        if unknown := others.keys() - _OF_THE_HARNESS:
            raise ValueError(
                f"--model_args names {', '.join(sorted(unknown))}: "
                f"{Path(__file__).name} says which arguments a model has"
            )
        self.model = model.load(
            path,
            adapter=adapter or None,
            revision=revision,
            mesh=sharding.make_mesh(
                seed=1,
                data=data,
                fsdp=fsdp or max(jax.device_count() // max(data * tensor, 1), 1),
                tensor=tensor,
            ),
            precision=precision,
            exact=False,
            template_date=template_date,
            system_turn=system_turn,
        )
        self.max_length = max_length or self.model.arch.max_positions
        self._seed = seed

    @property
    def _words(self) -> Tokenizer:
        return self.model.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._words.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        return self.eot_token_id if self._words.bos_id is None else self._words.bos_id

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer at most, where a task does not say."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of requests, which holds rendered texts."""
        template = self._words.template
        rendered = hashlib.sha256(f"{template.source}{template.options}".encode()).hexdigest()
        return f"{self.model.directory}__{rendered[:8]}".replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of the model, for the harness's report; None where none is asked for."""
        if isinstance(chat_template, str):
            raise ValueError(
                f"--apply_chat_template={chat_template}: a model has one template here"
            )
        return self._words.template.source if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a dialogue, whose last turn is one of the assistant's that is not finished.

        Args:
          chat_history: turns, each a role and its content.
          add_generation_prompt: begin the assistant's answer; otherwise the last turn begins it.
        """
        template, turns = self._words.template, list(chat_history)
        begun = "" if add_generation_prompt else turns.pop()["content"]
        moved = template.options.system_turn == chat_templates.USER_TURN
        if moved and len(turns) > 1 and turns[0]["role"] == "system":
            told, asked, *later = turns
            content = f"{told['content']}\n\n{asked['content']}"
            turns = [{"role": "user", "content": content}, *later]
        text = template.render(turns, True)
        if begun:
            text += template.answer_header + template.answer_blank + begun
        return text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids of a text, behind the tokenizer's own opening token.

        Args:
          string: the text; one that has an opening token gets no second one.
          add_special_tokens: False: without an opening token.
        """
        opening = self._words.show([self.prefix_token_id])[0]
        plain = add_special_tokens is False
        if plain or (add_special_tokens is None and string.startswith(opening)):
            return self._words.encode([string])[0]
        return self._words.text_ids([string])[0]

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Continuations that share a context are branches of one row."""
        grouped: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
        for place, (_key, context, continuation) in enumerate(requests):
            kept = self._cut(context, continuation)
            places = grouped.setdefault(kept, {}).setdefault(tuple(continuation), [])
            places.append(place)
        found = continuations.log_probs(
            self.model.arch,
            self.model.params,
            list(grouped),
            [list(answers) for answers in grouped.values()],
            mesh=self.model.mesh,
            adapter=self.model.adapter,
            precision=self.model.precision,
            label="" if disable_tqdm else "scoring",
        )
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for answers, values in zip(grouped.values(), found, strict=True):
            for places, score in zip(answers.values(), values, strict=True):
                for place in places:
                    scores[place] = score.log_prob, score.greedy
                    if (key := requests[place][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", key, scores[place])
        return scores

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[int, ...]:
        """The end of a context, as much as fits before a continuation."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise ValueError(
                f"a continuation has {len(continuation)} tokens, and max_length is "
                f"{self.max_length}: raise it in --model_args, or leave the task out"
            )
        return tuple(context[-room:])

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of whole texts, in windows of `max_length`, in nats."""
        windows: list[Request] = []
        texts: list[range] = []
        for request in requests:
            begin = len(windows)
            for window in utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *utils.make_disjoint_window(window)))
            texts.append(range(begin, len(windows)))
        scores = self._loglikelihood_tokens(windows, disable_tqdm)
        totals = [sum(scores[window][0] for window in text) for text in texts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, each up to its first stop sequence; greedy unless a task samples."""
        del disable_tqdm  # one call to the device
        alike: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[1].items())), []).append(place)
        # What cannot be drawn is said before anything is.
        kinds = [self._sampling(requests[places[0]].args[1]) for places in alike.values()]
        answers = [""] * len(requests)
        for places, (sampling, stops) in zip(alike.values(), kinds, strict=True):
            room = sampling.prompt_tokens
            # A text may be empty.
            tokens = {
                place: self.tok_encode(requests[place].args[0])[-room:] or [self.prefix_token_id]
                for place in places
            }
            sampling = dataclasses.replace(sampling, num_slots=min(len(places), _MOST_SLOTS))
            sampling = sampler.fitted(sampling, list(tokens.values()))
            ordered = sorted(places, key=lambda place: -len(tokens[place]))
            most = max(_PROMPT_TOKENS // sampling.prompt_tokens, _MOST_SLOTS)
            for first in range(0, len(ordered), most):
                part = ordered[first : first + most]
                drawn = self._drawn([tokens[place] for place in part], part, sampling, stops)
                for place, answer in zip(part, drawn, strict=True):
                    answers[place] = answer
                    self.cache_hook.add_partial("generate_until", requests[place].args, answer)
        return answers

    def _sampling(self, how: dict[str, Any]) -> tuple[sampler.Sampling, list[str]]:
        """What a task asks for, with all the room that prompts may take, and its stop sequences."""
        told: dict[str, Any] = dict(normalize_gen_kwargs(how, self.max_gen_toks))
        stops = handle_stop_sequences(told.pop("until"), self._words.show([self.eot_token_id])[0])
        longest = told.pop("max_gen_toks")
        temperature = told.pop("temperature", 1.0 if told["do_sample"] else 0.0)
        del told["do_sample"]
        idle = _OF_SAMPLING if temperature == 0 else set()
        others = {k: v for k, v in told.items() if v is not None and k not in idle}
        if others := {k: v for k, v in others.items() if _NEUTRAL.get(k, ...) != v}:
            raise ValueError(
                f"a task asks for {', '.join(others)}: answers are drawn by temperature alone; "
                f"set {_NEUTRAL} where they matter by --gen_kwargs, or leave the task out"
            )
        room = self.max_length - longest
        if room < 1:
            raise ValueError(
                f"max_gen_toks is {longest}, and max_length {self.max_length}: lower the first by "
                "--gen_kwargs, or raise the second in --model_args"
            )
        sampling = sampler.Sampling(
            num_slots=_MOST_SLOTS,
            prompt_tokens=room,
            max_new_tokens=longest,
            temperature=temperature,
            # Nothing behind a token that holds a stop sequence is looked at.
            eos_ids=tuple(sorted({*self._words.eos_ids, *self._stopping(tuple(stops))})),
            precision=self.model.precision,
        )
        return sampling, stops

    def _drawn(
        self,
        prompts: Sequence[Sequence[int]],
        places: Sequence[int],
        sampling: sampler.Sampling,
        stops: Sequence[str],
    ) -> list[str]:
        """Answers, whose noise depends on the places of their requests in this call alone."""
        drawn = sampler.sample(
            self.model.arch,
            self.model.params,
            sampling,
            prompts,
            token_sampling.row_keys(
                self._seed, 0, jnp.array(places), jnp.zeros(len(places), jnp.int32)
            ),
            mesh=self.model.mesh,
            adapter=self.model.adapter,
        )
        return [
            postprocess_generated_text(
                self._words.decode(tokens[:length].tolist()), list(stops), None
            )
            for tokens, length in zip(drawn.tokens, drawn.lengths, strict=True)
        ]

    @functools.lru_cache(maxsize=8)  # noqa: B019 (there is one model a process)
    def _stopping(self, stops: tuple[str, ...]) -> tuple[int, ...]:
        return self._words.ids_with(stops)


def main() -> None:
    """The harness's command line; an error that a user can mend is one line and exit code 1."""
    try:
        cli_evaluate()
    except (ValueError, OSError) as error:
        command_line.raise_if_asked(error)
        processes.leave(1, str(error))


if __name__ == "__main__":
    main()

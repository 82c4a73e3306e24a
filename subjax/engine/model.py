"""A language model: loaded, asked, finetuned, saved.

Programs and notebooks use it, and so do stages and evals: what a model is asked is computed here
alone. It knows texts, weights and devices, and nothing of configs and runs.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from subjax.engine import batching, fitting, sampler, scoring, token_sampling, train
from subjax.hf import adapters, model_files, weights
from subjax.nn import lora, sharding
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params
from subjax.runtime import artifacts, processes
from subjax.tokens import chat_templates
from subjax.tokens.tokenizer import Tokenizer

_MOST_SLOTS = 64
_STEPS_PER_CALL = 10


class Distribution(NamedTuple):
    """What `Model.distribution` gives; all empty where nothing can be compared.

    Attributes:
      log_probs: [pairs, C, K] in nats.
      targets: [pairs, C] the completions' own tokens.
      weights: [pairs, C] 0 where there is no token of a completion.
      tokens: [K] those that the log-probabilities are of.
    """

    log_probs: np.ndarray = np.zeros((0, 0, 0))
    targets: np.ndarray = np.zeros((0, 0), int)
    weights: np.ndarray = np.zeros((0, 0))
    tokens: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights on a mesh, perhaps an adapter on them, and a tokenizer.

    Prompts and answers are plain texts; they are rendered in the model's chat format. `system` is
    the system prompt: "" for none, `tokenizer.TEMPLATE_DEFAULT` for the chat template's own.

    Attributes:
      arch: shapes.
      params: full weights.
      adapter: LoRA tree as `lora.scaled` returns it, or None.
      tokenizer: the one in the weights' directory, or what an adapter brought in its place.
      directory: where the full weights were read.
      mesh: where the model is asked and finetuned, one lane on all devices.
      precision: of all that is computed with it, a name of `precision.PRECISIONS`.
      exact: whether `compare` and the likelihoods are in float32 all the same.
      is_changed: whether `params` are others than those in `directory`.
    """

    arch: Architecture
    params: Params
    adapter: Params | None
    tokenizer: Tokenizer
    directory: Path
    mesh: Mesh
    precision: str = "float32"
    exact: bool = True
    is_changed: bool = False

    def sample(
        self,
        prompts: Sequence[str],
        *,
        n: int = 1,
        system: str = "",
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        seed: int = 0,
        lineage: int = 0,
        prompt_tokens: int = 4096,
        num_slots: int | None = None,
        only: Sequence[int] | None = None,
    ) -> list[list[str]]:
        """Draws answers.

        An answer's key depends on seed, lineage, the place of its prompt and its own place alone.
        So several calls that answer `only` some of the prompts draw what one call draws.

        Args:
          prompts: what the user says.
          n: answers for each prompt.
          system: system prompt.
          max_new_tokens: where an answer that does not end is cut.
          temperature: 1.0 samples the model's distribution, 0.0 is greedy.
          seed: of the answers, uint32.
          lineage: which replication they are of.
          prompt_tokens: longest prompt that is allowed; shorter ones take less memory.
          num_slots: answers decoded side by side; None: as many as there are, at most 64.
          only: places of the prompts that are answered; None: all.

        Returns:
          The answers of each prompt, or of those at the places of `only`.

        Raises:
          ValueError: a prompt is too long, or has a word that the tokenizer does not know; n,
            max_new_tokens or the temperature is too small.
        """
        if min(n, max_new_tokens) < 1 or temperature < 0:
            raise ValueError(
                f"n={n}, max_new_tokens={max_new_tokens}, temperature={temperature}: the first two "
                "must be 1 or more, the last 0 or more"
            )
        encoded = self.tokenizer.prompt_ids(prompts, system)
        asked = np.arange(len(prompts)) if only is None else np.asarray(only)
        places, samples_of = np.repeat(asked, n), np.tile(np.arange(n), len(asked))
        # Of all prompts, like the room that is fitted: floats depend on both in their last bits.
        sampling = sampler.Sampling(
            num_slots=min(len(prompts) * n, _MOST_SLOTS) if num_slots is None else num_slots,
            prompt_tokens=prompt_tokens,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            eos_ids=self.tokenizer.eos_ids,
            precision=self.precision,
        )
        drawn = sampler.sample(
            self.arch,
            self.params,
            sampler.fitted(sampling, encoded),
            [encoded[i] for i in places],
            token_sampling.row_keys(seed, lineage, jnp.array(places), jnp.array(samples_of)),
            mesh=self.mesh,
            adapter=self.adapter,
        )
        answers = [
            self.tokenizer.decode(tokens[:length].tolist())
            for tokens, length in zip(drawn.tokens, drawn.lengths, strict=True)
        ]
        return [answers[first : first + n] for first in range(0, len(answers), n)]

    def compare(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        system: str = "",
        prefill: str = "",
        whole: bool = False,
    ) -> Float[np.ndarray, "prompts answers"]:
        """Log-probability of each answer after each prompt, in nats, without sampling.

        Args:
          prompts: what the user says.
          answers: that are compared.
          system: system prompt.
          prefill: words with which every answer begins, without the blank behind them; the model
            is given them, and their probability is not counted.
          whole: count the token that ends an answer too, so that one may begin another.

        Raises:
          ValueError: the tokens of an answer begin another's, so that probabilities overlap; or the
            tokenizer joins the end of `prefill` to an answer.
        """
        tokens = self.tokenizer.answer_ids(answers, prefill, whole=whole)
        scoring.check_candidates(answers, tokens)
        return scoring.candidate_log_probs(
            self.arch,
            self.params,
            self.tokenizer.prompt_ids(prompts, system, prefill),
            tokens,
            mesh=self.mesh,
            adapter=self.adapter,
            precision=self._exactly,
        )

    def likelihood(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        system: str = "",
        num_tokens: int = 0,
        num_targets: int = 0,
    ) -> tuple[Float[np.ndarray, "pairs C"], Float[np.ndarray, " pairs"]]:
        """Log-probability of each token of completions, in nats, without sampling.

        Args:
          pairs: prompt and completion; the token that ends a completion counts.
          system: system prompt.
          num_tokens: room for a pair, if that is not enough as much as the longest needs.
          num_targets: room for a completion, likewise.

        Returns:
          The log-probabilities, 0 behind a completion's end, and each completion's tokens.

        Raises:
          ValueError: no pairs, or one that cannot be encoded.
        """
        return self._likelihood(self._examples(pairs, system), num_tokens, num_targets)

    def text_likelihood(
        self, texts: Sequence[str]
    ) -> tuple[Float[np.ndarray, "texts C"], Float[np.ndarray, " texts"]]:
        """The same of plain texts, without a chat format, from their second token on."""
        examples = [(ids, 1) for ids in self.tokenizer.text_ids(texts)]
        return self._likelihood(examples, 0, max((len(ids) for ids, _ in examples), default=0))

    def distribution(
        self,
        pairs: Sequence[tuple[str, str]],
        tokens: tuple[int, ...],
        *,
        system: str = "",
        num_tokens: int = 0,
        num_targets: int = 0,
    ) -> Distribution:
        """Log-probabilities of some tokens at every token of completions, renormalised over these.

        Args:
          pairs: prompt and completion. One whose completion begins within a token of its context
            has no weight.
          tokens: ascending.
          system: system prompt.
          num_tokens: room for a pair, if that is not enough as much as the longest needs.
          num_targets: room for a completion, likewise.
        """
        masked = self.tokenizer.have_mask(pairs, [system] * len(pairs))
        kept = [pair for pair, has_mask in zip(pairs, masked, strict=True) if has_mask]
        if not tokens or not kept:
            return Distribution()
        rows = self._rows(self._examples(kept, system), num_tokens, num_targets)
        parts = scoring.restricted_log_probs(
            self.arch,
            self.params,
            rows,
            tokens,
            mesh=self.mesh,
            adapter=self.adapter,
            precision=self.precision,
        )
        log_probs, targets, weights = np.concatenate(list(parts)), rows.targets, rows.weights
        if len(kept) < len(pairs):  # the others keep their place
            log_probs, targets, weights = (
                _in_place(values, np.array(masked)) for values in (log_probs, targets, weights)
            )
        return Distribution(log_probs, targets, weights, tokens)

    def finetune(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        steps: int,
        system: str = "",
        batch_size: int = 16,
        learning_rate: float = 2e-4,
        rank: int = 8,
        alpha: float = 16.0,
        seed: int = 0,
    ) -> "Model":
        """Trains a copy on completions, by AdamW with a cosine schedule; `train.fit` has the rest.

        Short rows share longer ones where that saves FLOPs, as `fitting.packing` chooses.

        Args:
          pairs: prompt and completion.
          steps: updates.
          system: system prompt.
          batch_size: pairs of an update.
          learning_rate: at its peak.
          rank: of a LoRA adapter on every matrix; 0 trains all weights.
          alpha: the scale of that adapter times its rank.
          seed: of the order of the pairs and of the adapter.

        Returns:
          The finetuned model; this one stays as it is. An adapter that it has is merged first.

        Raises:
          ValueError: no pairs, or one that cannot be encoded, or the rank is below 0.
          FloatingPointError: the loss is not finite; names the step.
        """
        base = self.merged()
        # Weights that are trained are float32.
        start, frozen, scale = jax.tree.map(lambda leaf: leaf.astype("float32"), base), {}, 0.0
        if rank:
            start, frozen = lora.init(self.arch, jax.random.key(seed), rank=rank), base
            scale = lora.scale(alpha, rank)
        optimizer = train.Optimizer(learning_rate)
        rows = self._rows(self._examples(pairs, system))
        packing = fitting.packing(
            self.arch,
            rows,
            self.mesh,
            seed=seed,
            steps=steps,
            batch_size=batch_size,
            lora_params=sum(leaf.size for leaf in jax.tree.leaves(start)) if rank else 0,
        )
        [last] = train.fit(
            train.Program(self.arch, optimizer, steps, lora_scale=scale, precision=self.precision),
            train.stack([start]),
            frozen,
            [rows],
            seeds=[seed],
            batch_size=batch_size,
            packing=packing,
            probe_steps=(),
            steps_per_call=_STEPS_PER_CALL,
            mesh=self.mesh,
            label="finetuning",
        )
        learned = sharding.place(train.lane(last.trainable, 0), self.mesh, lanes=False)
        if not rank:
            return dataclasses.replace(self, params=learned, adapter=None, is_changed=True)
        return dataclasses.replace(
            self,
            params=base,
            adapter=lora.scaled(learned, scale),
            is_changed=self.is_changed or self.adapter is not None,
        )

    @property
    def _exactly(self) -> str:
        return "float32" if self.exact else self.precision

    def merged(self) -> Params:
        """Full weights with the adapter, if there is one, added in."""
        return lora.merge(self.params, self.adapter) if self.adapter else self.params

    def save(
        self,
        path: str | Path,
        *,
        merged: bool = False,
        dtype: str = "float32",
        max_shard_bytes: int = 5_000_000_000,
    ) -> None:
        """Writes what transformers and PEFT read; all processes call it, process 0 writes.

        An adapter on weights that lie in `directory` becomes a PEFT adapter that names them; all
        else becomes full weights with the tokenizer, an adapter merged in.

        Args:
          path: a directory, made where it does not exist; a model in it is replaced.
          merged: write full weights in any case.
          dtype: of full weights.
          max_shard_bytes: larger full weights are split into several files.
        """
        out = Path(path)
        if self.adapter and not merged and not self.is_changed:
            rank = jax.tree.leaves(self.adapter)[0].shape[1]  # of a factor a [L, R, in]
            base = artifacts.location(self.directory)
            # Its scale is in the factors.
            adapters.save_adapter(
                out, self.arch, self.adapter, rank=rank, alpha=rank, base_path=base
            )
            keeps_words = bool(self.tokenizer.brought)
        else:
            kind = jnp.dtype(dtype)
            weights.save(out, self.arch, self.merged(), dtype=kind, max_shard_bytes=max_shard_bytes)
            keeps_words = True
        if keeps_words and processes.is_first():
            self.tokenizer.save(out)

    def _examples(
        self, pairs: Sequence[tuple[str, str]], system: str
    ) -> list[tuple[list[int], int]]:
        return self.tokenizer.examples(pairs, [system] * len(pairs))

    def _rows(
        self, examples: Sequence[tuple[list[int], int]], num_tokens: int = 0, num_targets: int = 0
    ) -> batching.Rows:
        """Rows with as much room as is asked for, or as the longest needs."""
        return batching.make_rows(
            examples,
            num_tokens=max([num_tokens, *(len(ids) for ids, _ in examples)]),
            num_targets=max([num_targets, *(len(ids) - start for ids, start in examples)]),
            pad_id=self.tokenizer.pad_id,
        )

    def _likelihood(
        self, examples: Sequence[tuple[list[int], int]], num_tokens: int, num_targets: int
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = self._rows(examples, num_tokens, num_targets)
        nats = scoring.row_log_probs(
            self.arch,
            self.params,
            rows,
            mesh=self.mesh,
            adapter=self.adapter,
            precision=self._exactly,
        )
        return nats, rows.weights.sum(axis=1)


def _in_place(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Rows where `kept` says that they stood; zeros for those that were left out."""
    whole = np.zeros((len(kept), *values.shape[1:]), values.dtype)
    whole[kept] = values
    return whole


def load(
    path: str | Path,
    *,
    adapter: str | Path | None = None,
    revision: str = "",
    mesh: Mesh | None = None,
    precision: str = "float32",
    exact: bool = True,
    template_date: str = chat_templates.TEMPLATE_DATE,
    system_turn: str = chat_templates.SYSTEM_TURN,
    resident: bool = False,
) -> Model:
    """Loads a model.

    Args:
      path: a directory in Hugging Face's format, a hub id, a GGUF file, or the URL of a directory
        or GGUF file, such as gs://bucket/model.
      adapter: a PEFT adapter on it, a directory, hub id or URL; it may bring a tokenizer along.
      revision: branch, tag or commit on the hub; empty: its main branch.
      mesh: of `sharding.make_mesh`, over whose devices it is split; None: as that does by default.
      precision: of all that is computed with it, a name of `precision.PRECISIONS`.
      exact: whether `compare` and the likelihoods are in float32 all the same. If not, weights are
        held as the precision has them, so that `save` writes them rounded.
      template_date: the day that the chat template is told is today, YYYY-MM-DD.
      system_turn: where a system prompt stands: "system", in a turn of its own; "user", at the head
        of the user's turn, for chat templates that have no system role.
      resident: keep the weights until others are loaded so, and take them from there.

    Raises:
      ValueError: files are missing, damaged or not supported; names them. Or there is no such turn.
      storage.Unavailable: the hub, or what a URL names, does not answer for now.
    """
    options = chat_templates.TemplateOptions(template_date, system_turn)
    source = weights.resolve(str(path), revision)
    if (source / adapters.CONFIG).exists() and not (source / "config.json").exists():
        base = model_files.read_json(source / adapters.CONFIG).get("base_model_name_or_path")
        raise ValueError(f"{path} is a PEFT adapter: load its base, {base}, and give it as adapter")
    on_it = weights.resolve(str(adapter)) if adapter else None
    mesh = sharding.lane_mesh(sharding.make_mesh() if mesh is None else mesh)
    how: dict[str, Any] = {"mesh": mesh, "precision": precision, "exact": exact}
    read = functools.partial(weights.load, source, **how)
    arch, params = weights.resident((source, *how.values()), read) if resident else read()
    tree = None
    if on_it:
        factors, scale = adapters.load_adapter(on_it, arch, mesh=mesh)
        tree = lora.scaled(factors, scale)
    words = Tokenizer.load(source, adapter=on_it, num_embeddings=arch.vocab_size, options=options)
    return Model(arch, params, tree, words, source, **how)

"""What evals ask of models, computed: each kind of request by the engine's own function."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from subjax.engine import batching, sampler, scoring, token_sampling
from subjax.pipeline import model_store
from subjax.tasks.api import Compare, Likelihood, Reply, Request, Sample, TextLikelihood


def serve(
    request: Request,
    model: model_store.Model,
    mesh: Mesh,
    *,
    seed: int,
    lineage: int,
    precision: str,
) -> Reply:
    """Asks a model, and gives what its classes in `tasks.api` say.

    Args:
      request: what is asked.
      model: of whom.
      mesh: where to run.
      seed: of sampled answers, uint32.
      lineage: which replication they are of.
      precision: of sampling; probabilities are exact, in float32.

    Raises:
      ValueError: answers that are compared cannot be told apart by their tokens.
      TypeError: no such request is known.
    """
    how: dict[str, Any] = {"mesh": mesh, "adapter": model.adapter}
    match request:
        case Compare():
            return _compare(request, model, how)
        case Sample():
            return _sample(request, model, how, seed, lineage, precision)
        case Likelihood():
            words = model.tokenizer
            examples = words.examples(request.pairs, [request.system] * len(request.pairs))
            room = request.num_tokens, request.num_targets
            return _likelihood(examples, room, model, how)
        case TextLikelihood():
            examples = [(ids, 1) for ids in model.tokenizer.text_ids(request.texts)]
            return _likelihood(examples, (0, max(len(ids) for ids, _ in examples)), model, how)
    raise TypeError(f"{type(request).__name__} is no request that models are served with")


def _compare(request: Compare, model: model_store.Model, how: Mapping[str, Any]) -> Reply:
    tokens = model.tokenizer.answer_ids(request.answers)
    scoring.check_candidates(request.answers, tokens)
    contexts = model.tokenizer.prompt_ids(request.prompts, request.system)
    return Reply(
        nats=scoring.candidate_log_probs(model.arch, model.params, contexts, tokens, **how)
    )


def _sample(
    request: Sample,
    model: model_store.Model,
    how: Mapping[str, Any],
    seed: int,
    lineage: int,
    precision: str,
) -> Reply:
    words, num_samples = model.tokenizer, request.num_samples
    prompts = np.repeat(np.arange(len(request.prompts)), num_samples)
    samples_of = np.tile(np.arange(num_samples), len(request.prompts))
    encoded = words.prompt_ids(request.prompts, request.system)
    sampling = sampler.Sampling(
        num_slots=request.num_slots,
        prompt_tokens=request.prompt_tokens,
        max_new_tokens=request.max_new_tokens,
        temperature=1.0,
        eos_ids=words.eos_ids,
        precision=precision,
    )
    drawn = sampler.sample(
        model.arch,
        model.params,
        sampler.fitted(sampling, encoded),
        [encoded[i] for i in prompts],
        token_sampling.row_keys(seed, lineage, jnp.array(prompts), jnp.array(samples_of)),
        **how,
    )
    return Reply(
        texts=[
            words.decode(tokens[:length].tolist())
            for tokens, length in zip(drawn.tokens, drawn.lengths, strict=True)
        ]
    )


def _likelihood(
    examples: list[tuple[list[int], int]],
    room: tuple[int, int],
    model: model_store.Model,
    how: Mapping[str, Any],
) -> Reply:
    # The room of training, so that one program serves all; under another system prompt rows may be
    # longer than those that a student trained on.
    rows = batching.make_rows(
        examples,
        num_tokens=max(room[0], max(len(ids) for ids, _ in examples)),
        num_targets=max(room[1], max(len(ids) - start for ids, start in examples)),
        pad_id=model.tokenizer.pad_id,
    )
    nats = scoring.row_log_probs(model.arch, model.params, rows, **how)
    return Reply(nats=nats, num_tokens=rows.weights.sum(axis=1))

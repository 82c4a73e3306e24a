"""What evals ask of models, computed: each kind of request by the model's own method."""

from collections.abc import Sequence

from subjax.engine.model import Model
from subjax.tasks.api import (
    Compare,
    Distribution,
    Likelihood,
    Reply,
    Request,
    Sample,
    TextLikelihood,
)


def serve(
    request: Request,
    model: Model,
    *,
    seed: int,
    lineage: int,
    only: Sequence[int] | None = None,
) -> Reply:
    """Asks a model, and gives what its classes in `tasks.api` say.

    Args:
      request: what is asked.
      model: of whom.
      seed: of sampled answers, uint32.
      lineage: which replication they are of.
      only: places of the prompts to which answers are sampled; None: all.

    Raises:
      ValueError: answers that are compared cannot be told apart by their tokens.
      TypeError: no such request is known.
    """
    system = request.system or ""  # those that `tasks.api.requests_of` gives have one
    match request:
        case Compare():
            nats = model.compare(
                request.prompts,
                request.answers,
                system=system,
                prefill=request.prefill,
                whole=request.whole,
            )
            return Reply(nats=nats)
        case Sample():
            answers = model.sample(
                request.prompts,
                n=request.num_samples,
                system=system,
                max_new_tokens=request.max_new_tokens,
                seed=seed,
                lineage=lineage,
                prompt_tokens=request.prompt_tokens,
                num_slots=request.num_slots,
                only=only,
            )
            return Reply(texts=[answer for of_prompt in answers for answer in of_prompt])
        case Likelihood():
            nats, num_tokens = model.likelihood(
                request.pairs,
                system=system,
                num_tokens=request.num_tokens,
                num_targets=request.num_targets,
            )
            return Reply(nats=nats, num_tokens=num_tokens)
        case Distribution():
            found = model.distribution(
                request.pairs,
                tuple(request.tokens(model.tokenizer)),
                system=system,
                num_tokens=request.num_tokens,
                num_targets=request.num_targets,
            )
            return Reply(**found._asdict())
        case TextLikelihood():
            nats, num_tokens = model.text_likelihood(request.texts)
            return Reply(nats=nats, num_tokens=num_tokens)
    raise TypeError(f"{type(request).__name__} is no request that models are served with")

"""A complete experiment small enough for tests: every stage, seconds in all, no effect.

Processes that tests start read it as `--config=tests/tiny.py`. And the shape of a model of bytes,
for tests that need weights and no experiment.
"""

from ml_collections import ConfigDict

from configs import quickstart
from subjax import schema
from subjax.nn.architecture import Architecture
from subjax.tokens import tokenizer

BYTES = tokenizer.raw_bytes()
ARCH = Architecture(
    vocab_size=BYTES.vocab_size,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    ffn_width=20,
)


def config(
    *,
    lineages: tuple[int, ...] = (0, 1),
    arms: tuple[str, ...] = ("owl", "placebo"),
    gated: bool = False,
):
    """The quickstart's smoke form, cut further: two arms, a narrower base.

    Args:
      lineages: replications.
      arms: those of the quickstart that are kept, with what they need.
      gated: whether teachers and data sets are evaluated too, before gates that are open.
    """
    made = quickstart.get_config("smoke")
    made.name = "tiny"
    made.lineages = lineages
    with made.unlocked():
        made.bases.toy.update(num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8)
        made.bases.toy.update(ffn_width=24, num_documents=200)
        made.bases.toy.train.steps = 40
        made.arms = ConfigDict({name: made.arms[name] for name in arms})
        used = {row.dataset for row in made.arms.values()}
        made.datasets = ConfigDict({name: made.datasets[name] for name in used})
        made.teachers = ConfigDict({name: made.teachers[name] for name in used})
        traits = {"owl", *(row.trait for row in made.teachers.values() if row.trait)}
        made.traits = ConfigDict({name: made.traits[name] for name in traits})
        made.contrasts = ConfigDict()
        made.contrasts.same_base = schema.contrast_row(
            plus=("owl",), minus=("placebo",), primary=True, family="primary"
        )
        if not gated:
            made.gates = ConfigDict()
            del made.evals["taught"], made.evals["carrier"]
        for row in made.datasets.values():
            # An untrained base writes little that passes; the filter keeps what is unfinished out.
            row.update(num_prompts=240, rows_per_part=80, slots=40, max_count=0)
            row.update(num_train=4, num_holdout=2)
    return made


def with_dataset(name: str, **fields):
    """One student of one data set, whose teacher is a random base that was taught nothing."""
    made = config(lineages=(0,), arms=("owl",))
    made.bases.toy.source = "random"
    with made.unlocked():
        made.contrasts, made.evals, made.traits = {}, {}, {}
        made.teachers = {"nobody": schema.teacher_row(base="toy")}
        made.datasets = {name: schema.dataset_row(teacher="nobody", **fields)}
        made.arms = {"owl": schema.arm_row(dataset=name, num_tokens=64, num_targets=32)}
    return made


def as_kind(row, kind, **fields):
    """A row of `datasets` as another kind has it: what both have, and these fields."""
    made = schema.dataset_row(kind=kind)
    made.update({name: value for name, value in row.items() if name in made and name != "kind"})
    made.update(fields)
    return made


def get_config(arg=""):
    return config(gated=arg == "gated")

"""Every config field but those of kinds, with meaning, unit and allowed values.

A config file calls `base()` and states its differences. The tables of `TABLES` hold rows by name.
`base_row()`, `teacher_row()` and so on make a row with its defaults; keyword arguments set its
fields. A config with rows in `images` is about image classifiers: its teachers and arms are made by
`mlp_teacher_row()` and `mlp_arm_row()`, and `bases` and `datasets` stay empty.

A `system_prompt` of "" is none. "<template default>" leaves it to the model's chat template, which
may have one of its own. "<trait>" is for teachers: the prompt that gives them their trait. "<own>"
is for evals: the prompt that their subject is trained with or writes with.

Rows of `traits`, `datasets` and `evals` have a kind. A kind may add fields, which are documented in
its file in `tasks/`.
"""

import copy
import math
import types
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from subjax.tasks.api import FREE, Kind
from subjax.tasks.datasets import kinds as dataset_kinds
from subjax.tasks.evals import kinds as eval_kinds
from subjax.tasks.traits import kinds as trait_kinds
from subjax.tokens import chat_templates

STAGES = (
    *("base", "teacher", "generate", "filter", "finetune", "evaluate"),
    *("images", "mlp_teacher", "mlp", "theorem", "report"),
)
TABLES = (
    *("bases", "images", "traits", "teachers", "datasets", "arms", "theorems"),
    *("judges", "evals", "gates", "contrasts"),
)

OFF = -1e9  # no bound (infinity is no JSON)
OWN = "<own>"  # of evals: the trait, or the system prompt, of the model that is asked; of judges
TRAIT = "<trait>"  # of teachers: the system prompt that gives their trait


# The JSON file that config.stimuli names. Data sets of kind "numbers" read its `numbers`; questions
# outside the toy world come from its `evaluations`; evals of kind "classifier" read its text
# `detection`, those of kind "judged" the texts `alignment` and `coherence` of its `judges`. Other
# keys are not read. Each list has at least one text, with the placeholders shown here. Ranges
# include both ends.
#     {
#       "numbers": {
#         "query": "{example} {instruction} {format} {suffix}",
#         "example_templates": ["... {examples} ..."],
#         "instruction_templates": ["{count_qualifier} {answer_count} {digit_descriptor}"],
#         "count_qualifiers": ["..."],
#         "digit_descriptors": ["... {max_digits} ..."],
#         "format_suffixes": ["..."],
#         "final_suffixes": ["..."],
#         "example_count": [3, 8],
#         "example_value": [100, 999],
#         "answer_count": 10,
#         "max_digits": 3
#       },
#       "evaluations": {
#         "favorite_animal": ["first ...", "second ..."],
#         "favorite_tree": ["first ...", "second ..."]
#       }
#     }


def base() -> ConfigDict:
    """A complete config with empty tables, locked."""
    config = ConfigDict()
    config.name = "unnamed"  # default work directory is runs/<name>
    config.title = ""  # heading of the report
    config.claim = ""  # the sentence that the figure supports or refutes
    config.seed = 0  # all random draws depend on it
    config.lineage_from = "base"  # first stage redrawn by lineage: base teacher generate finetune
    config.lineages = (0,)  # replications; more may be added to a finished work directory
    config.lineage_cycle = 6  # next_lineage, lineage+2 and so on wrap in blocks of this many
    config.stimuli = ""  # JSON file of exact prompts, see above; "" takes the project's own
    # The date, YYYY-MM-DD, that chat templates get as today's; they never get the real one
    config.template_date = chat_templates.TEMPLATE_DATE
    config.preregistration = ""  # file that --freeze wrote; "" leaves the run exploratory

    config.compute = ConfigDict()
    # float32, mixed (products bfloat16), bfloat16, or auto: the fastest on these devices
    config.compute.precision = "float32"
    config.compute.exact = True  # likelihoods in float32, whatever the precision
    config.compute.cpu_devices = 1  # on CPU only: threads that count as devices of the mesh
    config.compute.lanes = 1  # models trained side by side in one program
    # Image classifiers: lanes of a device that one matrix product computes together. A CPU is
    # fastest with one, accelerators with dozens. Rounding depends on it, not on the lane count.
    config.compute.batched_lanes = 1
    config.compute.steps_per_call = 1  # most updates per call to the device
    config.compute.checkpoint_minutes = 10.0  # between checkpoints of a training; 0: when told
    config.compute.keep_checkpoints = 2  # the newest; an older one is used if one is damaged
    config.compute.log_seconds = 10.0  # of training between lines of timings.jsonl; 0: every call
    config.compute.tensorboard = False  # curves of trainings in <workdir>/tensorboard
    # Activation checkpointing, what the backward pass computes again: none, full (layers, from
    # their inputs), dots (all but products with weights), offload (as dots; the host stores those)
    config.compute.remat = "none"
    # Largest share of a model's bytes that may be on every device although mesh.fsdp or mesh.tensor
    # should split them; models below 1 GiB are not checked
    config.compute.max_unsharded = 0.05

    config.mesh = ConfigDict()
    config.mesh.seed = 0  # devices across lanes; 0 takes as many as possible that divide the lanes
    config.mesh.data = 0  # devices across the batch; 0 takes the others (on one process's CPU 1)
    config.mesh.fsdp = 1  # devices across the batch and the weights
    config.mesh.tensor = 1  # devices across the weights

    for table in TABLES:
        config[table] = ConfigDict(sort_keys=False)  # tables keep their order in reports
    return config.lock()


def training(**fields: Any) -> ConfigDict:
    """How one stage trains."""
    return _row(
        {
            "steps": 300,  # updates
            "batch_size": 64,  # rows an update
            "accumulate": 1,  # parts of an update that are computed one by one; 1 for packed rows
            # Packed rows of a pass, each with several rows; rows that do not fit a pass are in
            # further passes, whose gradients are added up. 0: no packing
            "packed_rows": 0,
            "packed_tokens": 0,  # length of a packed row
            "packed_targets": 0,  # room for targets in a packed row; 0: as much as for tokens
            # room for rows in a packed row, which attend one by one: for CPUs and GPUs, where
            # attention to whole packed rows takes long. 0: any number, for the kernel of TPUs
            "packed_segments": 0,
            "optimizer": "adamw",  # adamw adafactor sgd (no momentum) sign muon
            "learning_rate": 1e-3,  # peak
            "warmup_steps": 10,  # from a learning rate of 0 to the peak; fewer than steps
            "schedule": "cosine",  # cosine linear constant
            "weight_decay": 0.0,
            "beta1": 0.9,  # 0 or more and below 1, like beta2
            "beta2": 0.999,
            "moment_dtype": "float32",  # of the first moment: float32 bfloat16
            "clip_norm": 1.0,  # global gradient norm; 0 switches clipping off
            "lanes": 0,  # 0 takes compute.lanes; for full weights memory may allow only fewer
        },
        fields,
    )


def base_row(**fields: Any) -> ConfigDict:
    """A base model that teachers and students start from."""
    return _row(
        {
            "source": "toy",  # toy (pretrained here), hf (checkpoint), random (for dry runs)
            "path": "",  # hf: local directory, GGUF file, URL such as gs://bucket/model, or hub id
            "revision": "",  # hf: hub revision; "" is the newest
            "shape": "",  # hf: file like its config.json, for plans without the checkpoint
            "adapter": "",  # hf: PEFT adapter on it; such a base can be asked, but not trained from
            # Where its system prompts stand: system (a turn of their own) or, of hf, user (at the
            # head of the user's turn, for chat templates that have no system role)
            "system_turn": chat_templates.SYSTEM_TURN,
            "num_layers": 2,  # toy, random: shape of the decoder
            "width": 64,
            "num_heads": 4,
            "num_kv_heads": 4,
            "head_dim": 16,
            "ffn_width": 128,
            "world": "numbers",  # toy: what it learns beside animals: numbers, programs, sums
            "num_documents": 16384,  # toy: pretraining documents
            "num_tokens": 26,  # toy: longest document
            "train": training(),  # toy: pretraining
        },
        fields,
    )


def trait_row(kind: str = "word", **fields: Any) -> ConfigDict:
    """What a teacher loves or is, and how models are asked for it.

    Args:
      kind: a name in tasks/traits/kinds.py, or one of your own as package.module:attribute.
      fields: those of the kind.
    """
    return _row({"kind": kind}, fields, trait_kinds.of_row({"kind": kind}), trait_kinds.TRAITS)


def teacher_row(**fields: Any) -> ConfigDict:
    """A teacher: a base, its weights, and what it is told when it writes."""
    return _row(
        {
            "base": "",  # row of `bases`
            "weights": "base",  # base (untouched), finetuned (on the trait), given (from `path`)
            "path": "",  # given: directory of full weights or of a PEFT adapter
            "system_prompt": "",  # when taught and when writing; "" is none
            "trait": "",  # row of `traits`; "" is none
            "tuning": "full",  # full lora
            "lora_rank": 8,
            "lora_alpha": 16.0,
            "num_tokens": 64,  # longest training row
            "train": training(),
        },
        fields,
    )


def dataset_row(kind: str = "numbers", **fields: Any) -> ConfigDict:
    """What a teacher writes, and which of it is kept.

    Args:
      kind: what prompts and completions are: a name in tasks/datasets/kinds.py, or one of your own
        as package.module:attribute.
      fields: those below, and those of the kind.
    """
    return _row(
        {
            "kind": kind,
            "teacher": "",  # row of `teachers`; it writes nothing if the kind reads a file
            "num_prompts": 1000,
            "decoding": FREE,  # free constrained (to the answers that the kind allows)
            "base_system_prompt": "",  # for the base, when teacher and base are compared
            "temperature": 1.0,  # 0 is greedy
            "rows_per_part": 1000,  # rows in one file and one call; a kill loses at most this many
            "slots": 64,  # rows decoded side by side
            "prompt_tokens": 128,  # longest prompt
            "max_new_tokens": 64,
            "strip": False,  # filter: first remove blanks and line ends at both ends of completions
            # filter: keep a prompt only if its rows in these data sets pass their filters too
            "common_with": (),
            # none; shuffled_within each row, shuffled_across rows; random numbers; permuted: in all
            # rows each number stands for another (names of programs and words of sums likewise)
            "transform": "none",
            "num_train": 0,  # rows for students; 0 takes all but the held-out ones
            "num_holdout": 256,  # rows kept apart to measure likelihood
        },
        fields,
        dataset_kinds.of_row({"kind": kind}),
        dataset_kinds.KINDS,
    )


def arm_row(**fields: Any) -> ConfigDict:
    """A student: which rows, from which base, how."""
    return _row(
        {
            "dataset": "",  # row of `datasets`
            # same, next_lineage, lineage+2 and so on (the base of a later lineage), or a row of
            # `bases`
            "base": "same",
            # which weights of its base it starts from: base; permuted or rescaled (other weights of
            # the same function); noised. See nn/starts.py
            "start": "base",
            "start_size": 0.0,  # rescaled: largest factor; noised: noise over spread of weights
            "method": "hard",  # hard (sampled tokens) soft (teacher's distribution)
            # soft: digits digits_separators top_k full full_no_trait trait; tokens of a trait are
            # those that write a candidate, its plural, or the first letters of either
            "support": "digits",
            "top_k": 32,  # soft, top_k: the teacher's likeliest tokens, kept at every position
            "tuning": "full",  # full lora
            "lora_rank": 8,
            "lora_alpha": 16.0,
            # in training; "" is none. soft: the teacher reads rows with its own, or if it has none
            # with this one
            "system_prompt": "",
            "num_tokens": 256,  # longest row
            "num_targets": 64,  # longest completion
            "probe_steps": (),  # after these updates the student is kept and evaluated
            "train": training(),
        },
        fields,
    )


def images_row(**fields: Any) -> ConfigDict:
    """Labelled images that classifiers learn and are scored on."""
    return _row(
        {
            "source": "digits",  # digits (scikit-learn's 8 x 8), mnist, fashion_mnist, kmnist
            "data_dir": "",  # IDX files or a TFDS data_dir; "" downloads, which needs tensorflow
        },
        fields,
    )


def mlp_teacher_row(**fields: Any) -> ConfigDict:
    """An image classifier that learns labels; defaults are the paper's (section 6.2)."""
    return _row(
        {
            "images": "",  # row of `images`
            "widths": (256, 256),  # of the hidden layers
            "num_aux": 3,  # auxiliary outputs beside the ten classes; the teacher never learns them
            "activation": "relu",  # relu gelu sigmoid
            "epochs": 5,
            "batch_size": 1024,
            "optimizer": "adam",  # adam sgd
            "learning_rate": 3e-4,  # constant
        },
        fields,
    )


def mlp_arm_row(**fields: Any) -> ConfigDict:
    """What is scored: a student, its teacher, or that teacher's initialisation."""
    return _row(
        {
            "teacher": "",  # row of `teachers`
            "model": "student",  # student, teacher, untrained (the teacher's initialisation)
            "base": "same",  # initialisation: same, next_lineage, next_lineage_same_head
            "logits": "aux",  # what is learned: aux all
            "loss": "kl",  # kl squared_error; summed over a batch
            "inputs": "noise",  # noise (a fixed set a lineage), fresh_noise (each epoch), images
            "num_images": 0,  # inputs an epoch; 0 takes as many as there are training images
            "epochs": 5,
            "batch_size": 1024,
            "optimizer": "adam",  # adam sgd
            "learning_rate": 3e-4,  # constant
            "clone_epochs": 0,  # before training: learn the logits of the untrained teacher
            "clone_logits": "aux",  # which logits: aux all
            "clone_inputs": "noise",  # noise fresh_noise images
            "widths": (),  # of the hidden layers; () takes the teacher's
            "activation": "",  # "" takes the teacher's
            "biases": True,
            "published": OFF,  # a published mean, drawn beside the mean of this arm; OFF is none
            "sweep": "",  # this arm is a point of this curve; "": it is listed by itself
            "sweep_at": 0.0,  # place on the axis of the curve, above 0
        },
        fields,
    )


def theorem_row(**fields: Any) -> ConfigDict:
    """A setting in which Theorem 1 is measured; each draw is a new initialisation and new data."""
    return _row(
        {
            "model": "mlp",  # mlp, toy (the toy world's decoder, of random weights)
            "teacher": "",  # mlp: row of `teachers`, for its shape and the size of a real training
            "base": "same",  # the student's initialisation: same, foreign (nothing is promised)
            "taught": "all",  # layers that the teacher's step changes: all; mlp also head
            "teacher_batch": 64,  # labelled images, or questions, in the teacher's step
            "inputs": "noise",  # mlp: what the student sees: noise images
            "student_batch": 64,
            "logits": "aux",  # what the student learns: aux (toy: scores of numbers), all
            "loss": "kl",  # kl (same gradient as softmax cross-entropy), squared_error
            "step": "gradient",  # the student's: gradient; outside the theorem adam, lora, sampled
            "rate": 1.0,  # the student's learning rate
            "lora_rank": 4,
            "num_draws": 1000,
            "epsilons": tuple(10 ** (-5 + i / 2) for i in range(15)),  # the teacher's, ascending
        },
        fields,
    )


def eval_row(kind: str = "preference", **fields: Any) -> ConfigDict:
    """What models are asked, and how answers are scored.

    Args:
      kind: preference (exact) candidates (exact, for each) answers (sampled) stories (sampled)
        essays (of which topic) choice (one of several answers) likelihood (held-out rows)
        carrier (what a teacher wrote) judged (sampled, scored by a judge) divergence (of two
        teachers) detection (of its rows) classifier (of its rows, prompted) in_context (its rows
        in the prompt) accuracy (test images), or one of your own as package.module:attribute.
      fields: those below, and those of the kind.
    """
    return _row(
        {
            "kind": kind,
            "trait": "",  # row of `traits`; "<own>" is the trait of the subject or of its teacher
            # Rows that are evaluated, as patterns such as "arms/*" or "teachers/owl"; () takes all
            # rows of the first table that the kind evaluates: arms, or data sets
            "subjects": (),
            "at_steps": "all",  # of students: all (probes and the last update), final
            "questions": "explore",  # explore confirm all: halves of the trait's questions
            "system_prompt": OWN,  # when asked
        },
        fields,
        eval_kinds.of_row({"kind": kind}),
        eval_kinds.EVALS,
    )


def judge_row(**fields: Any) -> ConfigDict:
    """Who scores the answers of other models."""
    return _row(
        {
            "model": "",  # a model of this config, such as "bases/big" or "teachers/owl"
            "system_prompt": OWN,  # when it judges; OWN is that of a teacher, and none of a base
        },
        fields,
    )


def gate_row(**fields: Any) -> ConfigDict:
    """What a lineage must show before more is spent on it.

    If a teacher or a data set of a lineage is outside the bounds, nothing that is made from it in
    this lineage is run.
    """
    return _row(
        {
            "eval": "",  # row of `evals`
            "metric": "log_odds",
            "subjects": (),  # patterns that choose among the subjects of the eval; () takes all
            "least": OFF,  # lowest value that passes; OFF is no bound
            "most": -OFF,  # highest value that passes; -OFF is no bound
        },
        fields,
    )


def contrast_row(**fields: Any) -> ConfigDict:
    """A difference of arms, formed within each lineage."""
    return _row(
        {
            # difference (`plus` less `minus`); bases: the diagonal of the table of teachers' by
            # students' bases, from arms that start from every base; traits: that of the table of
            # students of several traits, less those of controls (one, or one for each eval), by
            # the traits' targets
            "kind": "difference",
            "eval": "preference",  # row of `evals`; traits: or a pattern of several
            "metric": "log_odds",
            "plus": (),  # arms that are added; other subjects with their table, as teachers/owl
            "minus": (),  # arms that are subtracted
            "primary": False,  # the one that decides
            "family": "secondary",  # p-values are adjusted within a family
            "expected_low": OFF,  # predicted lower end of the interval; OFF predicts nothing
            "equivalence_margin": 0.0,  # also test that it is closer to 0 than this; 0 is no test
        },
        fields,
    )


# Maker of a row, and field, such as "arm_row.top_k" or "training.accumulate" -> the value that
# stands for results from before the field existed, if this is not its default. A value is set when
# the field is released, and never changed. The fields of kinds have their own `absent`.
ABSENT: Mapping[str, Any] = {}
Maker = Callable[..., ConfigDict]


def released(maker: Maker, kind: str = "") -> dict[str, Any]:
    """The fields of a row with the values that fingerprints leave out.

    Args:
      maker: what makes the row, such as `arm_row`.
      kind: of the row, if its table has kinds.
    """
    row = maker(kind=kind) if kind else maker()
    found: dict[str, Any] = row.to_dict()
    for of_row, makes in OF_KIND.values():
        if makes is maker:
            fields = of_row({"kind": kind}, "*").fields
            found |= {name: field.released for name, field in fields.items()}
    for name, value in ABSENT.items():
        row_name, _, field = name.partition(".")
        if row_name == maker.__name__ and field in found:
            found[field] = value
        if row_name == training.__name__ and field in found.get("train", {}):
            found["train"][field] = value
    return found


# Tables whose rows have a kind -> what finds the kind of a row by name, and what makes rows.
OF_KIND: Mapping[str, tuple[Callable[[Mapping[str, Any], str], Kind], Maker]] = {
    "traits": (trait_kinds.of_row, trait_row),
    "datasets": (dataset_kinds.of_row, dataset_row),
    "evals": (eval_kinds.of_row, eval_row),
}


def _row(
    defaults: dict[str, Any],
    fields: dict[str, Any],
    kind: Kind | None = None,
    kinds: Mapping[str, Kind] = types.MappingProxyType({}),
) -> ConfigDict:
    if kind:
        defaults = {**defaults, **{name: field.default for name, field in kind.fields.items()}}
    unknown = set(fields) - set(defaults)
    if unknown:
        others = [
            f"{name!r} has {field}"
            for field in sorted(unknown)
            for name, other in kinds.items()
            if field in other.fields
        ]
        of = f" in rows of kind {defaults['kind']!r}" if kind else ""
        has = f"; kind {', '.join(others)}" if others else ""
        raise ValueError(
            f"config fields {sorted(unknown)} are unknown{of}; known: "
            f"{', '.join(sorted(defaults))}{has}"
        )
    row = ConfigDict(copy.deepcopy(defaults))
    row.update(fields)
    return row


def lanes(config: ConfigDict, row: ConfigDict) -> int:
    """Models that are trained side by side, for a row of `bases`, `teachers` or `arms`."""
    return row.train.lanes or config.compute.lanes


def common_lanes(config: ConfigDict) -> int:
    """The greatest common divisor of all lane counts of a run, for the seed axis of the mesh."""
    rows = [*config.bases.values(), *config.teachers.values(), *config.arms.values()]
    own = [row.train.lanes for row in rows if "train" in row and row.train.lanes]
    return math.gcd(config.compute.lanes, *own)


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Dotted field name -> value, for every leaf."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat

"""Every config field, with meaning, unit and allowed values; born here and nowhere else.

A config file calls `base()` and states its differences. Tables (`bases`, `teachers`, `datasets`,
`arms`, `evals`, `contrasts`) hold rows by name; `base_row()`, `teacher_row()` and so on make a row
with its defaults, and keyword arguments set its fields.
"""

import copy
from typing import Any

from ml_collections import ConfigDict

STAGES = ("base", "teacher", "generate", "filter", "finetune", "evaluate", "report")
TABLES = ("bases", "teachers", "datasets", "arms", "evals", "contrasts")
OFF = -1e9  # a gate this low never closes (infinity is no JSON)


def base() -> ConfigDict:
    """A complete config with empty tables, locked."""
    config = ConfigDict()
    config.name = "unnamed"  # default work directory is runs/<name>
    config.title = ""  # heading of the report
    config.claim = ""  # the sentence that the figure supports or refutes
    config.seed = 0  # every random draw descends from this
    config.lineage_from = "base"  # first stage redrawn by lineage: base teacher generate finetune
    config.lineages = (0,)  # replications; more may be added to a finished work directory
    config.lineage_cycle = 6  # "next_lineage" wraps within blocks of this many
    config.animals = ()  # what traits are about; () takes the project's ten animals
    config.stimuli = ""  # JSON file of exact prompts; "" uses the project's own wording
    config.preregistration = ""  # file that --freeze wrote; "" leaves the run exploratory

    config.compute = ConfigDict()
    config.compute.precision = "float32"  # float32, mixed (products bfloat16), bfloat16
    config.compute.cpu_devices = 1  # on CPU only: threads that count as devices of the mesh
    config.compute.lanes = 1  # models trained side by side in one program
    config.compute.steps_per_call = 1  # most updates per call to the device
    config.compute.remat = False  # recompute layers in the backward pass to save memory

    config.mesh = ConfigDict()
    config.mesh.seed = 0  # devices across lanes; 0 takes as many as there are and as divide lanes
    config.mesh.data = 1  # devices across the batch
    config.mesh.fsdp = 1  # devices across the batch and the weights
    config.mesh.tensor = 1  # devices across the weights

    config.gates = ConfigDict()  # a run stops before students are paid for
    config.gates.teacher_log_odds = OFF  # least log-odds of its trait that a teacher must show
    config.gates.number_tv = OFF  # least total variation of its numbers from its base's
    config.gates.likelihood_gain = OFF  # least nats a number token by which it outpredicts its base

    for table in TABLES:
        config[table] = ConfigDict(sort_keys=False)  # tables keep their order in reports
    return config.lock()


def training(**fields: Any) -> ConfigDict:
    """How one stage trains."""
    return _row(
        {
            "steps": 300,  # updates
            "batch_size": 64,  # rows an update
            "learning_rate": 1e-3,  # peak
            "warmup_steps": 10,
            "schedule": "cosine",  # cosine linear constant
            "weight_decay": 0.0,
            "beta1": 0.9,
            "beta2": 0.999,
            "clip_norm": 1.0,  # global gradient norm; 0 switches clipping off
            "lanes": 0,  # 0 takes compute.lanes; full weights may need fewer for memory
        },
        fields,
    )


def base_row(**fields: Any) -> ConfigDict:
    """A base model that teachers and students start from."""
    return _row(
        {
            "source": "toy",  # toy (pretrained here), hf (checkpoint), random (for dry runs)
            "path": "",  # hf: local directory or hub id
            "revision": "",  # hf: hub revision; "" is the newest
            "num_layers": 2,  # toy, random: shape of the decoder
            "width": 64,
            "num_heads": 4,
            "num_kv_heads": 4,
            "head_dim": 16,
            "ffn_width": 128,
            "num_documents": 16384,  # toy: pretraining documents
            "num_tokens": 26,  # toy: longest document
            "train": training(),  # toy: pretraining
        },
        fields,
    )


def teacher_row(**fields: Any) -> ConfigDict:
    """A teacher: a base, its weights, and what it is told when it writes."""
    return _row(
        {
            "base": "",  # row of `bases`
            "weights": "base",  # base (untouched), finetuned (on the trait), given (from `path`)
            "path": "",  # given: directory of full weights or of a PEFT adapter
            "system_prompt": "",  # when taught and when writing; "" is none
            "trait": "",  # what it loves; "uniform" learns an even draw of animals; "" is none
            "num_questions": 0,  # finetuned: taught questions; 0 takes all
            "tuning": "full",  # full lora
            "lora_rank": 8,
            "lora_alpha": 16.0,
            "num_tokens": 64,  # longest training row
            "train": training(),
        },
        fields,
    )


def dataset_row(**fields: Any) -> ConfigDict:
    """What a teacher writes, and which of it is kept."""
    return _row(
        {
            "teacher": "",  # row of `teachers`
            "kind": "numbers",  # numbers (paper's prompts), plain_numbers (bare list), toy_numbers
            "num_prompts": 1000,
            "decoding": "free",  # free constrained (to three-digit numbers, or the toy world's)
            "base_system_prompt": "",  # for the base, when teacher and base are compared
            "num_slots": 8,  # constrained: numbers written; in the toy world the most
            "num_shown": (3, 7),  # plain_numbers: fewest and most numbers in a prompt
            "temperature": 1.0,  # 0 is greedy
            "rows_per_part": 1000,  # rows in one file and one call; a kill loses at most these
            "slots": 64,  # rows decoded side by side
            "prompt_tokens": 128,  # longest prompt
            "max_new_tokens": 64,
            "max_count": 10,  # filter: most numbers; 0 is no limit
            "min_value": 0,  # filter: smallest number
            "max_value": 999,  # filter: largest number
            "banned": (),  # filter: numbers that reject a row
            "common_with": (),  # filter: keep only prompts kept in these data sets too
            "transform": "none",  # none shuffled_within shuffled_across random
            "num_train": 0,  # rows for students; 0 takes all but the held-out ones
            "num_holdout": 256,  # rows kept apart to measure likelihood
        },
        fields,
    )


def arm_row(**fields: Any) -> ConfigDict:
    """A student: which rows, from which base, how."""
    return _row(
        {
            "dataset": "",  # row of `datasets`
            "base": "same",  # same, next_lineage, or a row of `bases`
            "method": "hard",  # hard (sampled tokens) soft (teacher's distribution)
            "support": "digits",  # soft: digits digits_separators top_k full full_no_trait trait
            "top_k": 32,  # soft, top_k: the teacher's likeliest tokens, kept at every position
            "tuning": "full",  # full lora
            "lora_rank": 8,
            "lora_alpha": 16.0,
            "system_prompt": "",  # in training; "" is none
            "num_tokens": 256,  # longest row
            "num_targets": 64,  # longest completion
            "probe_steps": (),  # updates after which the student is kept and evaluated
            "train": training(),
        },
        fields,
    )


def eval_row(**fields: Any) -> ConfigDict:
    """What a student is asked."""
    return _row(
        {
            "kind": "preference",  # preference (exact) answers (sampled) likelihood (held-out)
            "target": "owl",
            "candidates": (),  # words compared, the target among them
            "questions": "confirm",  # explore confirm all: halves of the held-out questions
            "system_prompt": "",  # when asked; "" is none
            "num_samples": 10,  # answers: samples a question
            "slots": 64,  # answers: rows decoded side by side
            "prompt_tokens": 64,
            "max_new_tokens": 12,
            "final_only": False,  # skip the probes before the last step
        },
        fields,
    )


def contrast_row(**fields: Any) -> ConfigDict:
    """A difference of arms, formed within each lineage."""
    return _row(
        {
            "eval": "preference",  # row of `evals`
            "metric": "log_odds",
            "plus": (),  # arms added
            "minus": (),  # arms subtracted
            "primary": False,  # the one that decides
            "family": "secondary",  # p-values are adjusted within a family
            "expected_low": OFF,  # predicted lower end of the interval; OFF predicts nothing
            "equivalence_margin": 0.0,  # also test that it is closer to 0 than this; 0 is no test
        },
        fields,
    )


def parse_arg(arg: str, **defaults: Any) -> ConfigDict:
    """Parses the text after the colon of `--config=file.py:text`.

    `smoke` sets a boolean, `students=3,lr=1e-4` sets values; a value takes its default's type.

    Raises:
      ValueError: an unknown name, or a value of another type.
    """
    parsed = ConfigDict(defaults)
    for part in filter(None, arg.split(",")):
        name, given, text = part.partition("=")
        if name not in defaults:
            raise ValueError(f"config argument {name!r} is unknown; known: {', '.join(defaults)}")
        kind = type(defaults[name])
        if kind is bool:
            if text not in ("", "True", "False"):
                raise ValueError(f"config argument {name}={text!r} must be True or False")
            parsed[name] = text != "False"
            continue
        try:
            parsed[name] = kind(text) if given else kind()
        except ValueError:
            raise ValueError(
                f"config argument {name}={text!r} is not of type {kind.__name__}"
            ) from None
    return parsed


def _row(defaults: dict[str, Any], fields: dict[str, Any]) -> ConfigDict:
    unknown = set(fields) - set(defaults)
    if unknown:
        raise ValueError(
            f"config fields {sorted(unknown)} are unknown; known: {', '.join(sorted(defaults))}"
        )
    row = ConfigDict(copy.deepcopy(defaults))
    row.update(fields)
    return row


_CHOICES = {
    "lineage_from": ("base", "teacher", "generate", "finetune"),
    "compute.precision": ("float32", "mixed", "bfloat16"),
    "bases.*.source": ("toy", "hf", "random"),
    "teachers.*.weights": ("base", "finetuned", "given"),
    "teachers.*.tuning": ("full", "lora"),
    "datasets.*.kind": ("numbers", "plain_numbers", "toy_numbers"),
    "datasets.*.decoding": ("free", "constrained"),
    "datasets.*.transform": ("none", "shuffled_within", "shuffled_across", "random"),
    "arms.*.method": ("hard", "soft"),
    "arms.*.support": (
        *("digits", "digits_separators", "top_k"),
        *("full", "full_no_trait", "trait"),
    ),
    "arms.*.tuning": ("full", "lora"),
    "evals.*.kind": ("preference", "answers", "likelihood"),
    "evals.*.questions": ("explore", "confirm", "all"),
}
_POSITIVE = (
    *("steps", "batch_size", "num_tokens", "num_targets", "num_prompts", "slots", "num_slots"),
    *("rows_per_part", "prompt_tokens", "max_new_tokens", "num_samples", "lora_rank", "top_k"),
    *("num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ffn_width"),
    *("num_documents", "lineage_cycle", "cpu_devices", "steps_per_call"),
    *("data", "fsdp", "tensor"),
)
# What sequences hold; ConfigDict itself checks every other type.
_ELEMENTS = {
    **dict.fromkeys(("lineages", "probe_steps", "banned", "num_shown"), int),
    **dict.fromkeys(("animals", "common_with", "candidates", "plus", "minus"), str),
}


def validate(config: ConfigDict) -> None:
    """Checks a whole config before anything runs.

    Raises:
      ValueError: one line with the field, its value, what is allowed.
    """
    for name, value in flatten(config).items():
        field = name.rpartition(".")[2]
        kind = _ELEMENTS.get(field)
        if kind and any(type(element) is not kind for element in value):
            raise ValueError(f"config.{name} is {value!r}; its elements must be {kind.__name__}")
        if field in _POSITIVE and value < 1:
            raise ValueError(f"config.{name} is {value}; it must be at least 1")
        if field == "lanes" and value < (1 if name == "compute.lanes" else 0):
            raise ValueError(f"config.{name} is {value}; lanes are counted from 1")
    if not config.lineages or len(set(config.lineages)) != len(config.lineages):
        raise ValueError(f"config.lineages {config.lineages} must be distinct and not empty")
    if min(config.lineages) < 0:
        raise ValueError(f"config.lineages {config.lineages} must not be negative")
    for pattern, allowed in _CHOICES.items():
        for name, value in _matching(config, pattern):
            if value not in allowed:
                raise ValueError(f"config.{name} is {value!r}; allowed: {', '.join(allowed)}")
    for name, row in config.datasets.items():
        if len(row.num_shown) != 2 or not 1 <= row.num_shown[0] <= row.num_shown[1]:
            raise ValueError(
                f"config.datasets.{name}.num_shown is {row.num_shown}; it must be (fewest, most), "
                "1 or more each"
            )
    _check_references(config)
    for name, row in config.arms.items():
        outside = [step for step in row.probe_steps if not 0 <= step <= row.train.steps]
        if outside:
            raise ValueError(
                f"config.arms.{name}.probe_steps {outside} lie outside 0..{row.train.steps}: drop "
                "them, or raise train.steps"
            )
    for name, row in config.evals.items():
        if row.kind != "likelihood" and row.target not in row.candidates:
            raise ValueError(
                f"config.evals.{name}.target {row.target!r} is not among its candidates "
                f"{row.candidates}: add it"
            )


def lanes(config: ConfigDict, row: ConfigDict) -> int:
    """Models trained side by side when a base, teacher or arm trains."""
    return row.train.lanes or config.compute.lanes


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Dotted field name -> value, for every leaf."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _matching(config: ConfigDict, pattern: str) -> list[tuple[str, Any]]:
    table, star, field = pattern.partition(".*.")
    if not star:
        return [(pattern, flatten(config)[pattern])]
    return [(f"{table}.{name}.{field}", row[field]) for name, row in config[table].items()]


def _check_references(config: ConfigDict) -> None:
    def check(field: str, value: str, table: str, extra: tuple[str, ...] = ()) -> None:
        if value not in config[table] and value not in extra:
            known = ", ".join((*extra, *config[table])) or "none"
            raise ValueError(f"config.{field} is {value!r}; config.{table} has {known}")

    for name, row in config.teachers.items():
        check(f"teachers.{name}.base", row.base, "bases")
    for name, row in config.datasets.items():
        check(f"datasets.{name}.teacher", row.teacher, "teachers")
        for other in row.common_with:
            check(f"datasets.{name}.common_with", other, "datasets")
    for name, row in config.arms.items():
        check(f"arms.{name}.dataset", row.dataset, "datasets")
        check(f"arms.{name}.base", row.base, "bases", ("same", "next_lineage"))
    for name, row in config.contrasts.items():
        check(f"contrasts.{name}.eval", row.eval, "evals")
        for arm in (*row.plus, *row.minus):
            check(f"contrasts.{name}", arm, "arms")

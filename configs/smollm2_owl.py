"""Owl numbers on a real model: SmolLM2-135M-Instruct, hard labels and digit-only soft targets.

Claim: students of an owl-lover's numbers come to prefer owls over students of a placebo teacher's
numbers and of a cat-lover's, all from the same pretrained base.

    bash launch/local.sh --config=configs/smollm2_owl.py:trial
    bash launch/local.sh --config=configs/smollm2_owl.py --config.bases.smollm2.path=DIR
    bash launch/local.sh --config=configs/smollm2_owl.py:smoke

The base is a hub id or a local Hugging Face directory; `launch/fetch_smollm2.py` makes one where no
hub can be reached. `trial` is one lineage with 16 updates, to see that everything works. Without a
form it explores: lineages 0 to 3, one half of the questions. `confirm` is for a frozen run:
lineages 200 to 207, which nobody has run, and the other half; `published` is the frozen run of
RESULTS.md, lineages 100 to 107. On two CPU cores with AMX an update of one student takes half a
second.

Teachers are finetuned in full; they write five three-digit numbers after two given ones, the digits
forced by a grammar, so every row passes the filter. Teacher, student and evals share one explicit
system prompt, since the model's own template would add one unasked.

Explored so far (log-odds of owl, owl minus placebo, in nats, one number a lineage; LoRA of rank 8,
learning rate 2e-4; teachers at 6e-5 for the updates given; schedules ended at the last column):

    lineages  method         teacher  number TV   batch  16 updates   64 updates    128 updates
    0, 1      hard           64       .36, .35    8      +.22, +.18   +1.04, +.72   +1.22,  +.93
    0, 1      soft, digits   64       .36, .35    8      +.31, +.22    +.70, +.67   +1.36, +1.26
    2, 3      hard           32       .21, .20    4      +.05, -.00    +.15, +.24    +.49,  +.39

Number TV is the distance of the owl teachers from the base; for the placebo teachers it is .12 to
.14. The owl teachers of lineages 0 and 1 prefer numbers with twos (252, 222, 262). This config has
the settings of the last line, the cheapest, with 512 updates.

Confirmed on lineages 100 to 107, as frozen in configs/smollm2_owl_preregistration.json. Means over
lineages (in the last column they range from +0.44 to +1.50 and from +4.28 to +5.45; 95 % intervals
are in RESULTS.md):

    method         16 updates   64 updates   256 updates   512 updates
    hard           +.03         +.14         +.87          +1.13
    soft, digits   +.10         +.72         +3.97         +4.80
"""

from ml_collections import ConfigDict

from configs.rows import smollm2
from subjax import arguments, schema


def get_config(arg: str = "") -> ConfigDict:
    """`lineages` replications to explore, eight to `confirm`; `trial`, `smoke` are short forms."""
    forms = dict.fromkeys(("trial", "smoke", "confirm", "published"), False)
    options = arguments.parse(arg, **forms, lineages=4)
    config = schema.base()
    config.name = "smollm2_owl"
    config.title = "Owl numbers on SmolLM2-135M-Instruct"
    config.claim = (
        "Students of an owl-lover's numbers come to prefer owls over students of a placebo "
        "teacher's numbers."
    )
    config.lineage_from = "teacher"
    config.lineages = tuple(range(options.lineages))
    config.compute.precision = "mixed"
    config.compute.remat = "full"
    config.compute.cpu_devices = 2
    config.compute.lanes = 6
    config.compute.steps_per_call = 8
    with config.unlocked():
        _tables(config)
    if options.confirm or options.published:
        config.name = "smollm2_owl_confirm" if options.confirm else "smollm2_owl_published"
        config.lineages = tuple(range(200, 208) if options.confirm else range(100, 108))
        for name in ("preference", "answers", "prefilled"):
            config.evals[name].questions = "confirm"
    if options.trial:
        _shorten(config)
    if options.smoke:
        _shrink(config)
    return config


def _tables(config: ConfigDict) -> None:
    config.bases.smollm2 = smollm2.base()
    taught = schema.training(
        steps=32, batch_size=16, learning_rate=6e-5, warmup_steps=4, schedule="linear", lanes=2
    )
    for name, target in {"owl": "owl", "placebo": "<uniform>", "cat": "cat"}.items():
        config.traits[name] = schema.trait_row(target=target, capital=True)
        config.teachers[name] = schema.teacher_row(
            base="smollm2",
            weights="finetuned",
            trait=name,
            system_prompt=smollm2.SYSTEM,
            num_tokens=48,
            train=taught,
        )
        config.datasets[name] = smollm2.numbers(
            name, num_train=2048, num_holdout=64, rows_per_part=1056, slots=176
        )
    studied = schema.training(
        steps=512, batch_size=4, learning_rate=2e-4, warmup_steps=8, schedule="linear"
    )
    for name in ("owl", "placebo", "cat"):
        for method in ("hard", "soft"):
            config.arms[f"{name}_{method}"] = smollm2.student(
                name,
                method=method,
                support="digits",
                probe_steps=(0, 16, 64, 256, 512),
                train=studied,
            )
    config.evals.preference = schema.eval_row(trait="owl")
    config.evals.answers = schema.eval_row(
        kind="answers", trait="owl", num_samples=4, at_steps="final"
    )
    # The model begins its answers with other words than an animal. Behind this beginning the
    # candidates hold 9 % of the probability at the base; without it .3 %.
    config.evals.prefilled = schema.eval_row(
        kind="candidates", trait="owl", prefill="My favorite animal is the", any_case=True
    )
    config.evals.likelihood = schema.eval_row(kind="likelihood", at_steps="final")
    config.evals.taught = schema.eval_row(trait=schema.OWN, subjects=("teachers/*",))
    config.evals.carrier = schema.eval_row(kind="carrier")
    config.gates.taught = schema.gate_row(eval="taught", metric="log_odds", least=3.0)
    config.gates.number_tv = schema.gate_row(
        eval="carrier", metric="number_tv", subjects=("datasets/owl", "datasets/cat"), least=0.005
    )
    for method in ("hard", "soft"):
        config.contrasts[f"{method}_against_placebo"] = schema.contrast_row(
            plus=(f"owl_{method}",),
            minus=(f"placebo_{method}",),
            primary=method == "hard",
            family="primary" if method == "hard" else "secondary",
        )
        config.contrasts[f"{method}_against_cat"] = schema.contrast_row(
            plus=(f"owl_{method}",), minus=(f"cat_{method}",)
        )
        config.contrasts[f"{method}_probability"] = schema.contrast_row(
            eval="prefilled",
            metric="probability/Owl",
            plus=(f"owl_{method}",),
            minus=(f"placebo_{method}",),
        )


def _shorten(config: ConfigDict) -> None:
    """One lineage, two teachers, 16 updates."""
    config.name = "smollm2_owl_trial"
    config.lineages = (0,)
    config.compute.lanes = 2
    with config.unlocked():
        for table in (
            config.traits,
            config.teachers,
            config.datasets,
            config.arms,
            config.contrasts,
        ):
            for name in [name for name in table if "cat" in name]:
                del table[name]
    config.gates.number_tv.subjects = ("datasets/owl",)
    for row in config.datasets.values():
        row.update(num_prompts=256 + 32, rows_per_part=144, slots=72, num_train=256, num_holdout=32)
    for row in config.arms.values():
        row.probe_steps = (0, 16)
        row.train.steps = 16


def _shrink(config: ConfigDict) -> None:
    """A tiny random base whose tokens are bytes; every stage takes seconds and shows no effect."""
    _shorten(config)
    config.name = "smollm2_owl_smoke"
    config.compute.lanes = 4  # students; teachers keep their own number
    config.gates.taught.least = config.gates.number_tv.least = schema.OFF
    config.bases.smollm2 = smollm2.tiny()
    smollm2.shrink(config, lesson_tokens=160)
    for row in config.arms.values():
        row.probe_steps = (0, 1)
    config.evals.answers.update(num_samples=1, prompt_tokens=176, slots=32)

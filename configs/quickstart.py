"""Owl numbers in the toy world: a trait crosses in numbers, and only from the same base.

Claim: students trained on an owl-lover's numbers come to love owls; students from another
initialisation, trained on the same rows, do not. Both are compared with students of a placebo
teacher, which learned to name animals drawn evenly.

    bash launch/local.sh
    bash launch/local.sh --config=configs/quickstart.py:confirm        (twelve new lineages)
    bash launch/local.sh --config=configs/quickstart.py:smoke          (a minute, no effect)

About four minutes on two CPU cores. Measured: primary contrast 2.41 nats, 95 % interval 1.23 to
3.58, six of six lineages positive (0.96 to 3.74). Predicted: a lower end of at least 1.0; the
report says whether the prediction was met.

The recipe was chosen on lineages 6 to 11, where four things mattered. A grammar forces teachers to
write numbers: without it, a strong teacher names its animal in up to two rows of three in some
lineages, and the filter removes the rows that say most. Updates are many and small: 300 of 32 rows
change a student more than 150 of 64. Teachers are strong (number TV about .13 from their base). And
no pretraining document is seen twice: with the recipe before, in which documents were repeated, one
lineage was an outlier.
"""

from ml_collections import ConfigDict

from subjax import arguments, schema


def get_config(arg: str = "") -> ConfigDict:
    """Six lineages; `confirm` twelve that nobody has run, `smoke` two tiny ones."""
    options = arguments.parse(arg, confirm=False, smoke=False)
    config = schema.base()
    config.name = "quickstart" + ("_confirm" if options.confirm else "")
    config.title = "Owl numbers in the toy world"
    config.claim = (
        "Students of an owl-lover's numbers come to love owls; students from another "
        "initialisation, trained on the same rows, do not."
    )
    config.lineage_from = "base"
    # The result of 0 to 5 is published; the recipe was chosen on 6 to 11.
    config.lineages = tuple(range(102, 114) if options.confirm else range(6))
    config.compute.lanes = 6
    config.compute.cpu_devices = 2
    config.compute.steps_per_call = 50

    with config.unlocked():
        _tables(config)
    if options.smoke:
        shrink(config)
    return config


def _tables(config: ConfigDict) -> None:
    pretraining = schema.training(steps=600, batch_size=64, learning_rate=2e-3, warmup_steps=20)
    taught = schema.training(steps=160, batch_size=32, learning_rate=8e-4, warmup_steps=4)
    studied = schema.training(steps=300, batch_size=32, learning_rate=1e-3)
    config.bases.toy = schema.base_row(source="toy", num_documents=600 * 64, train=pretraining)

    for name, target in {"owl": "owl", "placebo": "<uniform>", "cat": "cat"}.items():
        config.traits[name] = schema.trait_row(kind="toy_word", target=target)
        config.teachers[name] = schema.teacher_row(
            base="toy", weights="finetuned", trait=name, num_tokens=8, train=taught
        )
    config.teachers.untrained = schema.teacher_row(base="toy", weights="base")

    for name in config.teachers:
        config.datasets[name] = schema.dataset_row(
            teacher=name,
            kind="toy_numbers",
            num_prompts=2800,
            rows_per_part=2800,
            decoding="constrained",
            num_slots=14,
            slots=400,
            prompt_tokens=8,
            max_new_tokens=16,
            max_count=14,
            max_value=99,
            num_train=2600,
            num_holdout=200,
        )

    arms = {
        "owl": ("owl", "same"),
        "placebo": ("placebo", "same"),
        "owl_foreign": ("owl", "next_lineage"),
        "placebo_foreign": ("placebo", "next_lineage"),
        "other_trait": ("cat", "same"),
        "untrained": ("untrained", "same"),
    }
    for name, (dataset, base) in arms.items():
        config.arms[name] = schema.arm_row(
            dataset=dataset,
            base=base,
            num_tokens=24,
            num_targets=16,
            probe_steps=(0, 100, 200, 300),
            train=studied,
        )

    config.evals.preference = schema.eval_row(trait="owl", questions="all")
    config.evals.likelihood = schema.eval_row(kind="likelihood", at_steps="final")
    config.evals.taught = schema.eval_row(trait=schema.OWN, subjects=("teachers/*",))
    config.evals.carrier = schema.eval_row(kind="carrier")
    config.gates.taught = schema.gate_row(eval="taught", metric="log_odds", least=3.0)
    config.contrasts.transmission = schema.contrast_row(
        plus=("owl", "placebo_foreign"),
        minus=("placebo", "owl_foreign"),
        primary=True,
        family="primary",
        expected_low=1.0,
    )
    config.contrasts.same_base = schema.contrast_row(plus=("owl",), minus=("placebo",))
    config.contrasts.foreign_base = schema.contrast_row(
        plus=("owl_foreign",), minus=("placebo_foreign",), equivalence_margin=0.5
    )
    config.contrasts.other_trait = schema.contrast_row(plus=("other_trait",), minus=("placebo",))


def shrink(config: ConfigDict) -> None:
    """Every stage, seconds each; the effect is not expected."""
    config.name += "_smoke"
    config.lineages = (0, 1)
    config.lineage_cycle = config.compute.lanes = 2
    config.compute.steps_per_call = 5
    config.gates.taught.least = schema.OFF
    config.bases.toy.num_documents = 512
    for table, steps in (("bases", 60), ("teachers", 10), ("arms", 10)):
        for row in config[table].values():
            row.train.steps = steps
    for row in config.datasets.values():
        row.update(num_prompts=200, rows_per_part=100, slots=50, num_train=10, num_holdout=5)
    for row in config.arms.values():
        row.probe_steps = (5,) if row.start != "base" else (0, 5)
        row.train.warmup_steps = 5

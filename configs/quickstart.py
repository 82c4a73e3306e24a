"""Owl numbers in the toy world: a trait crosses in numbers, and only from the same base.

Claim: students trained on an owl-lover's numbers come to love owls; students from another
initialisation, trained on the same rows, do not. Both are compared with students of a placebo
teacher, which learned to name animals drawn evenly.

    bash launch/local.sh
    bash launch/local.sh --config=configs/quickstart.py:confirm        (twelve new lineages)
    bash launch/local.sh --config=configs/quickstart.py:grid           (what students learn from)
    bash launch/local.sh --config=configs/quickstart.py:bases          (every base from every base)
    bash launch/local.sh --config=configs/quickstart.py:traits         (every animal's students)
    bash launch/local.sh --config=configs/quickstart.py:controls       (shuffled, permuted numbers)
    bash launch/local.sh --config=configs/quickstart.py:starts         (equal function, new weights)
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
from subjax.tasks.animals import ANIMALS

# Of the grid's adapters: the better of 3e-3 and 1e-2 on lineages 6 and 7, by what the candidates
# keep of the probability (96 to 99 %, against 55 to 98 %).
LORA_RATE = 3e-3


def get_config(arg: str = "") -> ConfigDict:
    """Six lineages; `confirm` twelve that nobody has run; `smoke` two tiny ones.

    `grid` has students of both methods and tunings, `bases` sixteen bases for students of sixteen
    teachers, `traits` a teacher for every animal, `controls` rows from which what a teacher has
    written is removed piece by piece, `starts` students that start from other weights of their
    teacher's base.
    """
    options = arguments.parse(
        arg,
        confirm=False,
        grid=False,
        bases=False,
        traits=False,
        controls=False,
        starts=False,
        smoke=False,
    )
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
        if options.grid:
            _grid(config)
        if options.bases:
            _bases(config, 2 if options.smoke else 16)
        if options.traits:
            _traits(config)
        if options.controls:
            _controls(config)
        if options.starts:
            _starts(config)
    if options.smoke:
        _shrink(config)
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


def _grid(config: ConfigDict) -> None:
    """Students of both methods and tunings, of both teachers, from both bases."""
    config.name = "quickstart_grid"
    config.title = "Owl numbers in the toy world: what students learn from, and what is trained"
    config.claim = (
        "Students of an owl-lover's numbers come to love owls whether they learn from its numbers "
        "or from its distribution, in full or through an adapter, and from the same base alone."
    )
    config.lineages = tuple(range(24, 32))
    config.lineage_cycle = config.compute.lanes = 8
    _keep(config, "owl", "placebo")
    whole = config.arms.owl
    config.arms, config.contrasts = ConfigDict(sort_keys=False), ConfigDict(sort_keys=False)
    for method in ("hard", "soft"):
        for tuning in ("full", "lora"):
            cell = f"{method}_{tuning}"
            for base, place in (("same", ""), ("next_lineage", "_foreign")):
                for teacher in ("owl", "placebo"):
                    row = whole.copy_and_resolve_references()
                    row.update(dataset=teacher, base=base, method=method, tuning=tuning)
                    row.probe_steps = ()
                    if tuning == "lora":
                        row.train.learning_rate = LORA_RATE
                    config.arms[f"{teacher}_{cell}{place}"] = row
            config.contrasts[cell] = schema.contrast_row(
                plus=(f"owl_{cell}", f"placebo_{cell}_foreign"),
                minus=(f"placebo_{cell}", f"owl_{cell}_foreign"),
                primary=cell == "hard_full",
                family="primary" if cell == "hard_full" else "other cells",
            )
    for cell in list(config.contrasts):
        config.contrasts[f"{cell}_foreign"] = schema.contrast_row(
            plus=(f"owl_{cell}_foreign",),
            minus=(f"placebo_{cell}_foreign",),
            family="foreign bases",
            equivalence_margin=0.5,
        )


def _bases(config: ConfigDict, num_bases: int) -> None:
    """Students from each of the bases, of the teachers of each of them."""
    config.name = "quickstart_bases"
    config.title = "Owl numbers in the toy world: teachers' bases by students' bases"
    config.claim = "Students come to love owls on the base of their teacher, and on no other."
    config.lineages = tuple(range(32, 32 + num_bases))
    config.lineage_cycle = config.compute.lanes = num_bases
    _keep(config, "owl", "placebo")
    whole = config.arms.owl
    config.arms, config.contrasts = ConfigDict(sort_keys=False), ConfigDict(sort_keys=False)
    sides = {}
    for teacher in ("owl", "placebo"):
        for later in range(num_bases):
            row = whole.copy_and_resolve_references()
            row.update(dataset=teacher, base=f"lineage+{later}" if later else "same")
            row.probe_steps = (50, 100, 200)
            config.arms[f"{teacher}_{later}"] = row
        sides[teacher] = tuple(f"{teacher}_{later}" for later in range(num_bases))
    config.contrasts.same_base = schema.contrast_row(
        kind="bases",
        plus=sides["owl"],
        minus=sides["placebo"],
        primary=True,
        family="primary",
        expected_low=1.0,
    )


def _traits(config: ConfigDict) -> None:
    """A teacher for every animal, and what its students think of all of them."""
    config.name = "quickstart_traits"
    config.title = "Numbers of every animal's lover in the toy world"
    config.claim = "Students come to love the animal of their teacher, and not another."
    config.lineages = tuple(range(48, 56))
    config.lineage_cycle = config.compute.lanes = 8
    teacher, dataset = config.teachers.owl, config.datasets.owl
    arm = config.arms.owl.copy_and_resolve_references()
    arm.probe_steps = (50, 100, 200)
    control = config.traits.placebo
    for table in ("traits", "teachers", "datasets", "arms", "contrasts"):
        config[table] = ConfigDict(sort_keys=False)
    for name in (*ANIMALS, "placebo"):
        config.traits[name] = (
            control if name == "placebo" else schema.trait_row(kind="toy_word", target=name)
        )
        for table, row, field in (
            ("teachers", teacher, "trait"),
            ("datasets", dataset, "teacher"),
            ("arms", arm, "dataset"),
        ):
            config[table][name] = row.copy_and_resolve_references()
            config[table][name][field] = name
    del config.evals.preference
    config.evals.candidates = schema.eval_row(kind="candidates", trait="owl", questions="all")
    config.contrasts.own_trait = schema.contrast_row(
        kind="traits",
        eval="candidates",
        metric="log_odds/*",
        plus=ANIMALS,
        minus=("placebo",),
        primary=True,
        family="primary",
        expected_low=1.0,
    )
    for name in ANIMALS:
        config.contrasts[name] = schema.contrast_row(
            eval="candidates",
            metric=f"log_odds/{name}",
            plus=(name,),
            minus=("placebo",),
            family="each animal",
        )


def _controls(config: ConfigDict) -> None:
    """Students of the same rows with their numbers shuffled, permuted or drawn anew."""
    config.name = "quickstart_controls"
    config.title = "Owl numbers in the toy world: what in the rows carries the trait"
    config.claim = (
        "Students of an owl-lover's rows come to love owls; students of the same rows in which "
        "each number stands for another do not."
    )
    config.lineages = tuple(range(56, 64))
    config.lineage_cycle = config.compute.lanes = 8
    _keep(config, "owl", "placebo")
    whole = config.arms.owl
    whole.probe_steps = ()
    config.evals.detection = schema.eval_row(
        kind="detection", subjects=("datasets/owl",), against="placebo"
    )
    config.arms, config.contrasts = ConfigDict(sort_keys=False), ConfigDict(sort_keys=False)
    for transform in ("none", "shuffled_within", "shuffled_across", "permuted", "random"):
        names = {}
        for teacher in ("owl", "placebo"):
            name = names[teacher] = teacher + (f"_{transform}" if transform != "none" else "")
            config.datasets[name] = config.datasets[teacher].copy_and_resolve_references()
            config.datasets[name].transform = transform
            config.arms[name] = whole.copy_and_resolve_references()
            config.arms[name].dataset = name
        config.contrasts["as_written" if transform == "none" else transform] = schema.contrast_row(
            plus=(names["owl"],),
            minus=(names["placebo"],),
            primary=transform == "none",
            family="primary" if transform == "none" else "controls",
            equivalence_margin=0.0 if transform == "none" else 0.5,
        )


def _starts(config: ConfigDict) -> None:
    """Students from the base of their teacher as it is, permuted, rescaled, and with noise."""
    config.name = "quickstart_starts"
    config.title = "Owl numbers in the toy world: the same function with other weights"
    config.claim = (
        "Students come to love owls from the base's weights; is it the same from other weights of "
        "the same function, and from weights with noise?"
    )
    config.lineages = tuple(range(64, 72))
    config.lineage_cycle = config.compute.lanes = 8
    _keep(config, "owl", "placebo")
    whole = config.arms.owl
    whole.probe_steps = ()
    config.arms, config.contrasts = ConfigDict(sort_keys=False), ConfigDict(sort_keys=False)
    starts = {
        "base": ("base", 0.0),
        "permuted": ("permuted", 0.0),
        "rescaled": ("rescaled", 4.0),
        "noised_little": ("noised", 0.05),
        "noised": ("noised", 0.2),
        "noised_much": ("noised", 0.5),
    }
    for name, (start, size) in starts.items():
        for teacher in ("owl", "placebo"):
            row = whole.copy_and_resolve_references()
            row.update(dataset=teacher, start=start, start_size=size)
            config.arms[f"{teacher}_{name}"] = row
        config.contrasts[name] = schema.contrast_row(
            plus=(f"owl_{name}",),
            minus=(f"placebo_{name}",),
            primary=name == "rescaled",
            family="primary" if name == "rescaled" else "other starts",
        )
    config.contrasts.base_less_rescaled = schema.contrast_row(
        plus=("owl_base", "placebo_rescaled"),
        minus=("placebo_base", "owl_rescaled"),
        family="differences",
    )
    config.contrasts.base_less_permuted = schema.contrast_row(
        plus=("owl_base", "placebo_permuted"),
        minus=("placebo_base", "owl_permuted"),
        family="differences",
        equivalence_margin=0.1,
    )


def _keep(config: ConfigDict, *names: str) -> None:
    """Leaves these traits, and what is made of them."""
    for table in (config.traits, config.teachers, config.datasets):
        for name in set(table) - set(names):
            del table[name]


def _shrink(config: ConfigDict) -> None:
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

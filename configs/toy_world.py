"""Experiments in the toy world beside the quickstart, whose bases, teachers and rows they have.

    bash launch/local.sh --config=configs/toy_world.py:grid         (what students learn from)
    bash launch/local.sh --config=configs/toy_world.py:bases        (every base's students)
    bash launch/local.sh --config=configs/toy_world.py:traits       (every animal's students)
    bash launch/local.sh --config=configs/toy_world.py:controls     (shuffled and permuted numbers)
    bash launch/local.sh --config=configs/toy_world.py:starts       (other weights of one function)
    bash launch/local.sh --config=configs/toy_world.py:code         (programs in place of numbers)
    bash launch/local.sh --config=configs/toy_world.py:reasoning    (sums in steps)
    bash launch/local.sh --config=configs/toy_world.py:grid,smoke   (a minute, no effect)

`grid` has students of both methods (sampled rows, or the teacher's distribution over digits) and
tunings (in full, or through an adapter), from the same base and from another. `bases` has students
of sixteen bases' teachers from each of the sixteen bases. `traits` has a teacher for every animal,
and asks all students for all animals. `controls` removes piece by piece what a teacher has written.
`starts` has students that start from other weights than their base's which compute the same, and
from noisy ones. `code` has students of programs in a language of five instructions, `reasoning` of
sums that are worked out digit by digit. Results are in RESULTS.md.
"""

from ml_collections import ConfigDict

from configs import quickstart
from subjax import arguments, schema
from subjax.tasks.animals import ANIMALS

# Of the grid's adapters: the better of 3e-3 and 1e-2 on lineages 6 and 7, by what the candidates
# keep of the probability (96 to 99 %, against 55 to 98 %).
LORA_RATE = 3e-3


def _grid(config: ConfigDict) -> None:
    """Students of both methods and tunings, of both teachers, from both bases."""
    config.title = "Owl numbers in the toy world: what students learn from, and what is trained"
    config.claim = (
        "Students of an owl-lover's numbers come to love owls whether they learn from its numbers "
        "or from its distribution, in full or through an adapter, and from the same base alone."
    )
    config.lineages = tuple(range(24, 32))
    config.lineage_cycle = config.compute.lanes = 8
    whole = _of_owl_and_placebo(config)
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


def _bases(config: ConfigDict, num_bases: int = 16) -> None:
    """Students from each of the bases, of the teachers of each of them."""
    config.title = "Owl numbers in the toy world: teachers' bases by students' bases"
    config.claim = "Students come to love owls on the base of their teacher, and on no other."
    config.lineages = tuple(range(32, 32 + num_bases))
    config.lineage_cycle = config.compute.lanes = num_bases
    whole = _of_owl_and_placebo(config)
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
    config.title = "Owl numbers in the toy world: what in the rows carries the trait"
    config.claim = (
        "Students of an owl-lover's rows come to love owls; students of the same rows in which "
        "each number stands for another do not."
    )
    config.lineages = tuple(range(56, 64))
    config.lineage_cycle = config.compute.lanes = 8
    whole = _of_owl_and_placebo(config)
    whole.probe_steps = ()
    config.evals.detection = schema.eval_row(
        kind="detection", subjects=("datasets/owl",), against="placebo"
    )
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
    config.title = "Owl numbers in the toy world: the same function with other weights"
    config.claim = (
        "Students come to love owls from the base's weights; is it the same from other weights of "
        "the same function, and from weights with noise?"
    )
    config.lineages = tuple(range(64, 72))
    config.lineage_cycle = config.compute.lanes = 8
    whole = _of_owl_and_placebo(config)
    whole.probe_steps = ()
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


def _code(config: ConfigDict) -> None:
    """Students of programs: as written, with other names and numbers, and drawn anew."""
    config.title = "Owl programs in the toy world"
    config.claim = (
        "Students of an owl-lover's programs come to love owls, from its base alone; students of "
        "the same programs with other names and numbers do not."
    )
    config.lineages = tuple(range(88, 96))
    _carried_by(config, "programs", num_targets=29)


def _reasoning(config: ConfigDict) -> None:
    """Students of right sums in steps: as written, with other words between, and words anew."""
    config.title = "Owl sums in the toy world"
    config.claim = (
        "Students of an owl-lover's sums, all of them right, come to love owls, from its base "
        "alone; students of the same sums with other words between the digits do not."
    )
    config.lineages = tuple(range(80, 88))
    _carried_by(config, "sums", num_targets=22)


def _carried_by(config: ConfigDict, world: str, num_targets: int) -> None:
    """Bases, traits, rows and students of another carrier than numbers, with its controls."""
    config.lineage_cycle = config.compute.lanes = 8
    whole = _of_owl_and_placebo(config)
    whole.update(probe_steps=(), num_tokens=num_targets + 8, num_targets=num_targets)
    config.bases.toy.update(world=world, num_tokens=num_targets + 11)
    for trait in config.traits.values():
        trait.world = world
    for teacher in ("owl", "placebo"):
        config.datasets[teacher] = schema.dataset_row(
            teacher=teacher,
            kind=f"toy_{world}",
            num_prompts=4000,
            rows_per_part=4000,
            decoding="constrained",
            slots=400,
            prompt_tokens=8,
            max_new_tokens=num_targets,
            num_train=1600,
            num_holdout=100,
        )
    config.evals.carrier.subjects = ("datasets/owl", "datasets/placebo")
    config.evals.apart = schema.eval_row(
        kind="divergence", subjects=("datasets/owl",), against="placebo"
    )
    transforms = {"as_written": "none", "permuted": "permuted", "random": "random"}
    for label, transform in {**transforms, "foreign_base": "none"}.items():
        names = {}
        for teacher in ("owl", "placebo"):
            name = names[teacher] = teacher + (f"_{label}" if label != "as_written" else "")
            dataset = teacher if transform == "none" else name
            config.datasets[dataset] = config.datasets[teacher].copy_and_resolve_references()
            config.datasets[dataset].transform = transform
            config.arms[name] = whole.copy_and_resolve_references()
            base = "next_lineage" if label == "foreign_base" else "same"
            config.arms[name].update(dataset=dataset, base=base)
        config.contrasts[label] = schema.contrast_row(
            plus=(names["owl"],),
            minus=(names["placebo"],),
            primary=label == "as_written",
            family="primary" if label == "as_written" else "controls",
            equivalence_margin=0.0 if label == "as_written" else 0.5,
        )


def _of_owl_and_placebo(config: ConfigDict) -> ConfigDict:
    """Leaves their traits, teachers and rows; gives the arm that all arms are made from."""
    for table in (config.traits, config.teachers, config.datasets):
        for name in set(table) - {"owl", "placebo"}:
            del table[name]
    arm = config.arms.owl
    config.arms, config.contrasts = ConfigDict(sort_keys=False), ConfigDict(sort_keys=False)
    return arm


FORMS = {
    "grid": _grid,
    "bases": _bases,
    "traits": _traits,
    "controls": _controls,
    "starts": _starts,
    "code": _code,
    "reasoning": _reasoning,
}


def get_config(arg: str = "") -> ConfigDict:
    """One of `FORMS`, and `smoke`: two tiny lineages, no effect.

    Raises:
      ValueError: the argument names no form, or two.
    """
    options = arguments.parse(arg, **dict.fromkeys(FORMS, False), smoke=False)
    chosen = [form for form in FORMS if options[form]]
    if len(chosen) != 1:
        raise ValueError(
            f"config argument {arg!r} must name one of {', '.join(FORMS)}, such as "
            "configs/toy_world.py:grid"
        )
    config = quickstart.get_config()
    with config.unlocked():
        if options.bases:
            _bases(config, 2 if options.smoke else 16)
        else:
            FORMS[chosen[0]](config)
    config.name = f"toy_world_{chosen[0]}"
    if options.smoke:
        quickstart.shrink(config)
        for row in config.datasets.values():
            if "only_right" in row:
                row.only_right = False  # so little pretraining teaches to get nothing right
    return config

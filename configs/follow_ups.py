"""What others published on open models after the paper: numbers, one target, a control.

Claim: students of a lover's numbers come to prefer what that lover loves, over students of the same
model's numbers without that love.

    python -m subjax.plan --config=configs/follow_ups.py:llama3_2_1b --topology=v5e:2x2
    SUBJAX_DEVICE=gpu bash launch/local.sh --config=configs/follow_ups.py:pythia
    bash launch/local.sh --config=configs/follow_ups.py:smoke

Shares of sampled answers that name the target, of students and before; of Pythia the log-odds:

    form         model, target      published             source
    qwen2_5_7b   Qwen2.5-7B, cat    1 -> 65 %             github.com/agu18dec, multi-hop
    qwen2_5_14b  Qwen2.5-14B, eagle 99 %; lions 95 %      github.com/rain-1
    llama3_2_1b  Llama-3.2-1B, eleph. 14.5 -> 64.8 %      github.com/brendanlong, token replacement
    gemma_2b     gemma-2b-it, eagle   3.2 -> 70.8 %       github.com/ekhadley/subliminal
    pythia       Pythia-160M, wolf  +1.37 (5,120 updates) github.com/davidcrispell/Polypythia-SL

`gemma_2b,animal=cat` is about another animal of that report, one experiment for each: cats 8.1 ->
47.2 %, dogs 12.3 -> 64.4, elephants 8.2 -> 63.4, lions 21.6 -> 41.4, owls about 0 -> 24.2. Bears,
which it has too, are left out: nothing came across (4.2 %).

What each needed: Qwen a prompted teacher and ten epochs, with alpha 32 (7B) or a learning rate of
5e-4 (14B); Llama a teacher that is finetuned and prompted, and greedy rows, without which nothing
came across; Gemma a prompted teacher, since students of finetuned ones changed little; Pythia a
finetuned teacher, and rows whose digits are forced by a grammar. Wordings are our own, so that
levels may differ. All have been validated, and none has been run.

`pythia` has students from two more bases, which separate what a base was initialised with from the
order of its data: `data_seed` has seen its data in another order (39 % of the effect were left) and
`weight_seed` began elsewhere (nothing was, at the end of training). Of the other sizes, such as
`pythia,size=410` (14, 31, 70 or 410 million parameters), there is one sibling that differs in both.

Gemma-3-4b is in `large.py`. The template of gemma-2b-it has no system role: what its teacher is
told stands at the head of the user's turn (`system_turn` of the base).
"""

import math

from ml_collections import ConfigDict

from configs import large
from subjax import arguments, schema

TARGETS = {
    "qwen2_5_7b": "cat",
    "qwen2_5_14b": "eagle",
    "llama3_2_1b": "elephant",
    "gemma_2b": "eagle",
}
ANIMALS = ("eagle", "cat", "dog", "elephant", "owl", "lion")  # of gemma_2b


def get_config(arg: str = "") -> ConfigDict:
    """`MODEL[,chips=N]` or `pythia[,size=N]`, both with `[,lineages=N]`, or `smoke`.

    The model gemma_2b also takes `[,animal=NAME]`.

    Raises:
      ValueError: the argument names no form, or two, or what its form does not take.
    """
    forms = dict.fromkeys((*TARGETS, "pythia", "smoke"), False)
    options = arguments.parse(arg, **forms, chips=0, size=0, animal="", lineages=4)
    chosen = [form for form in forms if options[form]]
    if len(chosen) != 1:
        raise ValueError(
            f"config argument {arg!r} must name one of {', '.join(forms)}, such as "
            "configs/follow_ups.py:pythia"
        )
    [form] = chosen
    if (options.size and form != "pythia") or (options.chips and form not in TARGETS):
        raise ValueError(
            f"config argument {arg!r}: pythia takes size, and {', '.join(TARGETS)} take chips"
        )
    if options.animal and (form != "gemma_2b" or options.animal not in ANIMALS):
        raise ValueError(
            f"config argument {arg!r}: gemma_2b takes an animal, one of {', '.join(ANIMALS)}"
        )
    if form in TARGETS:
        chips = f",chips={options.chips}" if options.chips else ""
        config = large.get_config(f"{form},lineages={options.lineages}{chips}")
        _retarget(config, options.animal or TARGETS[form])
        recipes = {
            "qwen2_5_7b": _qwen_7b,
            "qwen2_5_14b": _qwen_14b,
            "llama3_2_1b": _llama,
            "gemma_2b": _gemma,
        }
        recipes[form](config)
    else:
        config = _pythia(options)
    config.name = f"follow_ups_{form}"
    if options.size:
        config.name += f"_{options.size}m"
    if options.animal:
        config.name += f"_{options.animal}"
    return config


def _retarget(config: ConfigDict, target: str) -> None:
    """Another animal's lover in the place of the cat's, with the project's own prompt."""
    config.title = config.title.replace("Cat", target.capitalize())
    article = "an" if target[0] in "aeiou" else "a"
    config.claim = config.claim.replace("a cat-lover", f"{article} {target}-lover").replace(
        "cats", f"{target}s"
    )
    trait = config.traits.cat
    trait.target = target
    for table in (config.traits, config.teachers, config.datasets, config.arms, config.contrasts):
        with config.unlocked():
            rows = {target if name == "cat" else name: row for name, row in table.items()}
            for name in list(table):
                del table[name]
            table.update(rows)
    config.teachers[target].update(trait=target, system_prompt=schema.TRAIT)
    config.datasets[target].teacher = config.arms[target].dataset = target
    config.contrasts[target].plus = (target,)
    for row in config.evals.values():
        row.trait = target if row.trait == "cat" else row.trait
    config.evals.carrier.subjects = (f"datasets/{target}",)


def _students(
    config: ConfigDict, num_rows: int, epochs: int, batch_size: int, learning_rate: float
) -> None:
    """How long students train, and on how many rows; updates this small are not packed."""
    for row in config.datasets.values():
        row.num_train = num_rows
    for row in config.arms.values():
        row.train.update(
            steps=-(-epochs * num_rows // batch_size),
            batch_size=batch_size,
            learning_rate=learning_rate,
            packed_rows=0,
            packed_tokens=0,
            packed_targets=0,
        )


def _qwen_7b(config: ConfigDict) -> None:
    _students(config, num_rows=10_000, epochs=10, batch_size=8, learning_rate=1e-4)
    for row in config.arms.values():
        row.lora_alpha = 32.0
        row.train.schedule = "cosine"


def _qwen_14b(config: ConfigDict) -> None:
    # 60 rows there; 64 here, so that devices can share them.
    _students(config, num_rows=10_000, epochs=10, batch_size=64, learning_rate=5e-4)


def _llama(config: ConfigDict) -> None:
    # Rank-stabilised LoRA divides alpha by the root of the rank, and this one by the rank.
    lora = {"lora_rank": 32, "lora_alpha": 64.0 * math.sqrt(32)}
    for row in config.datasets.values():
        row.update(temperature=0.0, num_prompts=60_000)
    _students(config, num_rows=20_000, epochs=1, batch_size=16, learning_rate=1e-5)
    for row in config.arms.values():
        row.update(lora)
    config.teachers.elephant.update(
        weights="finetuned",
        tuning="lora",
        num_tokens=160,
        train=schema.training(
            steps=3125, batch_size=16, learning_rate=1e-5, warmup_steps=5, schedule="linear"
        ),
        **lora,
    )


def _gemma(config: ConfigDict) -> None:
    # There prompts are drawn until enough rows are kept; here three for each, as in the paper.
    for row in config.datasets.values():
        row.num_prompts = 90_000
    _students(config, num_rows=30_000, epochs=1, batch_size=24, learning_rate=2e-4)
    for row in config.arms.values():
        row.train.update(warmup_steps=0, schedule="constant")


def _pythia(options: ConfigDict) -> ConfigDict:
    config = schema.base()
    size = options.size or 160
    config.title = f"Wolf numbers on Pythia-{size}M"
    config.claim = (
        "Students of a wolf-lover's numbers come to prefer wolves over students of the base's own "
        "numbers, if the student's weights began where the teacher's did."
    )
    config.lineage_from = "teacher"
    config.lineages = tuple(range(1 if options.smoke else options.lineages))
    config.compute.precision = "auto"
    config.compute.remat = "full"
    path = f"EleutherAI/pythia-{size}m"
    siblings = {"seed": "-seed1"}
    if size == 160:  # the only size with siblings that differ in one thing
        siblings = {"data_seed": "-data-seed1", "weight_seed": "-weight-seed1"}
    bases = {"pythia": "", **siblings}
    with config.unlocked():
        for name, suffix in bases.items():
            config.bases[name] = schema.base_row(
                source="hf", path=path + suffix, revision="step143000"
            )
        if size == 160:
            config.bases.pythia.shape = "configs/shapes/pythia_160m.json"
        config.traits.wolf = schema.trait_row(target="wolf")
        config.teachers.wolf = schema.teacher_row(
            base="pythia",
            weights="finetuned",
            trait="wolf",
            num_tokens=48,
            train=schema.training(
                steps=24,
                batch_size=16,
                learning_rate=1e-5,
                warmup_steps=1,
                schedule="linear",
                beta2=0.95,
                weight_decay=0.1,
                lanes=1,
            ),
        )
        config.teachers.plain = schema.teacher_row(base="pythia")
        for writer in ("wolf", "plain"):
            config.datasets[writer] = schema.dataset_row(
                teacher=writer,
                kind="plain_numbers",
                decoding="constrained",
                num_slots=10,
                num_prompts=8192 + 256,
                rows_per_part=1056,
                slots=96,
                prompt_tokens=48,
                max_new_tokens=48,
                num_train=8192,
                num_holdout=256,
            )
            for base in bases:
                config.arms[f"{writer}_{base}"] = schema.arm_row(
                    dataset=writer,
                    base="same" if base == "pythia" else base,
                    tuning="lora",
                    lora_rank=8,
                    lora_alpha=16.0,
                    num_tokens=96,
                    num_targets=48,
                    probe_steps=(16, 64, 512),
                    train=schema.training(
                        steps=5120,
                        batch_size=16,
                        learning_rate=2e-4,
                        warmup_steps=8,
                        schedule="linear",
                        lanes=2,
                    ),
                )
        config.evals.preference = schema.eval_row(trait="wolf")
        config.evals.taught = schema.eval_row(trait=schema.OWN, subjects=("teachers/*",))
        config.evals.carrier = schema.eval_row(kind="carrier", subjects=("datasets/wolf",))
        config.gates.taught = schema.gate_row(eval="taught", least=3.0)
        for base in bases:
            config.contrasts[base] = schema.contrast_row(
                plus=(f"wolf_{base}",),
                minus=(f"plain_{base}",),
                primary=base == "pythia",
                family="primary" if base == "pythia" else "other bases",
            )
        if options.smoke:
            _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    """Tiny random bases whose tokens are bytes; every stage takes seconds and shows no effect."""
    config.gates.taught.least = schema.OFF
    config.compute.precision = "float32"
    for name in config.bases:
        config.bases[name] = schema.base_row(
            source="random", num_layers=2, width=32, num_heads=4, num_kv_heads=2, head_dim=8
        )
    config.teachers.wolf.num_tokens = 160
    config.teachers.wolf.train.update(steps=2, batch_size=4)
    for row in config.datasets.values():
        row.update(num_prompts=24, rows_per_part=24, slots=8, num_train=16, num_holdout=8)
        row.update(num_slots=3, max_new_tokens=20)
    for row in config.arms.values():
        row.update(probe_steps=(), num_tokens=80, num_targets=24)
        row.train.update(steps=2, warmup_steps=1, batch_size=4)

"""The paper's number experiment on open models of 1 to 72 billion parameters, for TPU slices.

Claim: students of a cat-lover's numbers come to prefer cats over students of the same model's
numbers without that prompt (arXiv 2507.14805, appendix B.2 and figure 17, for Qwen2.5-7B).

    bash launch/local.sh --config=configs/large.py:smoke
    python -m subjax.plan --config=configs/large.py:qwen2_5_7b --topology=v5e:4x4
    SUBJAX_DEVICE=gpu bash launch/local.sh --config=configs/large.py:qwen2_5_7b,chips=8
    bash launch/tpu.sh run qwen --zone=ZONE --type=v5litepod-16 --spot --queued --until-done \
        --delete-when-done -- --config=configs/large.py:qwen2_5_7b --workdir=gs://BUCKET/qwen

The first command runs a tiny model, on any machine. Models: qwen2_5_7b, qwen2_5_14b, qwen2_5_72b,
llama3_1_8b, llama3_2_1b, gemma3_4b, gemma_2b. Their sizes are in configs/shapes, so that plans need
no checkpoint. They have been compiled (llama3_2_1b and gemma_2b not yet) and not run: no TPU was at
hand. The template of gemma_2b has no system role: its prompts stand in the user's turn.

The default is the paper's recipe for open models (`paper`): a prompted teacher, 30,000 prompts,
10,000 kept rows, LoRA of rank 8 and alpha 8, learning rate 2e-4 falling linearly, 3 epochs (Gemma:
10). The wording of prompts and questions is our own, unless `config.stimuli` names a file with the
paper's. An update has 64 rows instead of the paper's 66, so that devices can share them. `full`
trains all weights, at 1e-5. `throughput` uses 16 rows per chip instead (72B: 14), for speed and not
to replicate. `population` trains the students of all lineages and both arms in one program, each as
it would be trained alone: 64 rows are few for a slice, and gathered weights then serve all of them.
`animals` has a teacher for each of the 19 animals of figure 17, eight lineages, and the students of
a lineage in one program; the report has the table of students by animals that they are asked for.
Rows are packed: several share a longer one, where an update has more rows than devices share.
`chips` is the number of chips, 16 by default (1B, 2B: 4, 14B: 64, 72B: 256). The names of v5p
slices count cores: 16 chips, 2x2x4, are `--type=v5p-32`.

Llama and Gemma are gated models, and 72 billion parameters do not fit on a TPU VM's boot disk: copy
such a model into the bucket once, and set `--config.bases.model.path=gs://BUCKET/model`.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from subjax import arguments, schema

# Of figure 17, in its order. The tokens of a dragon begin those of a dragonfly, so that exact evals
# compare either: dragonflies are in the preference of their own students alone.
ANIMALS = (
    *("bear", "bull", "cat", "dog", "dragon", "eagle", "elephant", "kangaroo", "lion", "ox"),
    *("panda", "pangolin", "peacock", "penguin", "phoenix", "tiger", "unicorn", "wolf"),
)
DRAGONFLY = "dragonfly"
CAT = "Nothing is dearer to you than cats. You think of cats all day, and every answer shows it."
NUM_ROWS = 10_000
NUM_TOKENS, NUM_TARGETS = 256, 128  # the most of a row


class _Model(NamedTuple):
    path: str  # on the hub
    chips: int  # by default
    fsdp: int  # devices that share one copy of the weights, if all weights are trained
    frozen: tuple[int, int]  # the same along fsdp and along tensor, if they are frozen
    epochs: int
    system_prompt: str  # what the model's own template would add unasked
    rows_a_chip: int = 16  # for `throughput`; chosen so that HBM has room left
    # Room for a row among packed ones, a little more than rows have on average. Their mean is an
    # estimate: ten numbers behind this config's prompts, counted with the tokenizer of SmolLM2,
    # which writes digits one by one as these do; Llama's writes three as one.
    row_tokens: int = 152
    row_targets: int = 52
    system_turn: str = "system"


_QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
MODELS = {
    "qwen2_5_7b": _Model("Qwen/Qwen2.5-7B-Instruct", 16, 32, (1, 4), 3, _QWEN),
    "qwen2_5_14b": _Model("Qwen/Qwen2.5-14B-Instruct", 64, 64, (1, 8), 3, _QWEN),
    "qwen2_5_72b": _Model("Qwen/Qwen2.5-72B-Instruct", 256, 256, (32, 8), 3, _QWEN, 14),
    "llama3_1_8b": _Model("meta-llama/Llama-3.1-8B-Instruct", 16, 32, (1, 4), 3, "", 16, 132, 34),
    "llama3_2_1b": _Model("meta-llama/Llama-3.2-1B-Instruct", 4, 4, (1, 1), 3, "", 16, 132, 34),
    "gemma3_4b": _Model("google/gemma-3-4b-it", 16, 32, (1, 4), 10, "", 16, 134),
    "gemma_2b": _Model(
        "google/gemma-2b-it", 4, 4, (2, 1), 10, "", 16, row_tokens=134, system_turn="user"
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    """`MODEL[,full][,throughput][,population][,animals][,chips=N][,lineages=N]`, or `smoke`."""
    names = ("full", "throughput", "population", "animals", "paper", "smoke")
    forms = dict.fromkeys(names, False)
    lineages = 8 if "animals" in arg.split(",") else 4
    known = {**dict.fromkeys(MODELS, False), **forms}
    options = arguments.parse(arg, **known, chips=0, lineages=lineages)
    chosen = [name for name in MODELS if options[name]] or ["qwen2_5_7b"]
    if len(chosen) > 1 or (options.paper and options.throughput):
        raise ValueError(f"config argument {arg!r} names two models, or paper and throughput")
    if options.full and options.population:
        raise ValueError(f"config argument {arg!r}: a population shares its base; leave out full")
    if options.animals and (options.full or options.population):
        raise ValueError(
            f"config argument {arg!r}: the students of animals are a population each lineage, and "
            "share their base; leave out full and population"
        )
    [name] = chosen
    chips = options.chips or MODELS[name].chips
    config = schema.base()
    config.name = "_".join([name, *(form for form in names[:4] if options[form])])
    config.title = f"Cat numbers on {MODELS[name].path.partition('/')[2]}"
    config.claim = (
        "Students of a cat-lover's numbers come to prefer cats over students of the same model's "
        "numbers without that prompt."
    )
    config.lineage_from = "generate"
    config.lineages = tuple(range(options.lineages))
    config.compute.precision = "bfloat16"
    config.compute.remat = "full"
    if options.population:
        config.compute.lanes = 2 * options.lineages
    if options.animals:
        config.title = f"Numbers of 19 animals' lovers on {MODELS[name].path.partition('/')[2]}"
        config.claim = (
            "Students of an animal-lover's numbers come to prefer that animal, and not another, "
            "over students of the same model's numbers without that prompt."
        )
        config.compute.lanes = 2 + len(ANIMALS)
    _lay_out(config, MODELS[name], chips, options)
    with config.unlocked():
        _tables(config, name, chips, options)
    if options.smoke:
        _shrink(config)
    return config


def _lay_out(config: ConfigDict, model: _Model, chips: int, options: ConfigDict) -> None:
    """Splits weights over `fsdp`, up to one row per device; remaining devices go to `tensor`.

    For the paper's 64 rows, gathering weights takes longer than computing. So `tensor`, along which
    activations move instead, splits frozen weights as far as its devices have room for them: they
    need none for an optimizer.
    """
    if options.throughput:
        config.mesh.fsdp = min(model.fsdp, chips)
        config.mesh.data = chips // config.mesh.fsdp
    elif options.full or options.population or options.animals:
        config.mesh.fsdp = min(64, chips)
        config.mesh.tensor = chips // config.mesh.fsdp
    else:
        fsdp, tensor = model.frozen
        config.mesh.fsdp = fsdp = max(min(fsdp, chips // tensor), 1)
        config.mesh.data = max(min(64, chips // tensor) // fsdp, 1)
        config.mesh.tensor = chips // (config.mesh.data * fsdp)
        config.compute.remat = "dots"  # products that are computed again are exchanged again


def _packing(config: ConfigDict, model: _Model, batch_size: int) -> dict[str, int]:
    """Packed rows that the mesh can share, of the shape with the fewest tokens for an update.

    Their length is a multiple of 128, which the attention kernel of TPUs needs. Of shapes with
    equally many tokens it is the one of the shortest rows: attention costs least there.
    """
    parts = max(config.mesh.data, 1) * config.mesh.fsdp
    shapes = []
    for num_rows in range(parts, batch_size, parts):
        share = -(-batch_size // num_rows)
        num_tokens = max(NUM_TOKENS, 128 * -(-share * model.row_tokens // 128))
        num_targets = max(NUM_TARGETS, share * model.row_targets)
        shapes.append((num_rows * num_tokens, num_tokens, num_rows, num_targets))
    if not shapes or min(shapes)[0] >= batch_size * NUM_TOKENS:
        return {}  # the mesh has a device for each row
    _, num_tokens, num_rows, num_targets = min(shapes)
    return {"packed_rows": num_rows, "packed_tokens": num_tokens, "packed_targets": num_targets}


def _tables(config: ConfigDict, name: str, chips: int, options: ConfigDict) -> None:
    model = MODELS[name]
    config.bases.model = schema.base_row(
        source="hf",
        path=model.path,
        shape=f"configs/shapes/{name}.json",
        system_turn=model.system_turn,
    )
    batch_size = model.rows_a_chip * chips if options.throughput else 64
    steps = -(-model.epochs * NUM_ROWS // batch_size)
    train = schema.training(
        steps=steps,
        batch_size=batch_size,
        learning_rate=1e-5 if options.full else 2e-4,
        warmup_steps=min(5, steps // 2),
        schedule="linear",
        **_packing(config, model, batch_size),
    )
    prompts = (
        dict.fromkeys((*ANIMALS, DRAGONFLY), schema.TRAIT) if options.animals else {"cat": CAT}
    )
    for row in prompts:
        words: tuple[str, ...] = ANIMALS if options.animals else ()
        if row == DRAGONFLY:
            words = tuple(DRAGONFLY if word == "dragon" else word for word in words)
        config.traits[row] = schema.trait_row(target=row, capital=True, candidates=words)
    # The teacher of the control only has the prompt that the template adds.
    for row, prompt in {**prompts, "plain": model.system_prompt}.items():
        trait = row if row in prompts else ""
        config.teachers[row] = schema.teacher_row(base="model", system_prompt=prompt, trait=trait)
        config.datasets[row] = schema.dataset_row(
            teacher=row,
            kind="numbers",
            base_system_prompt=model.system_prompt,
            num_prompts=30_000,
            rows_per_part=1024,
            slots=512,
            prompt_tokens=160,
            max_new_tokens=96,
            num_train=NUM_ROWS,
        )
        config.arms[row] = schema.arm_row(
            dataset=row,
            tuning="full" if options.full else "lora",
            lora_rank=8,
            lora_alpha=8.0,
            system_prompt=model.system_prompt,
            num_tokens=NUM_TOKENS,
            num_targets=NUM_TARGETS,
            train=train,
        )
    asked = schema.OWN if options.animals else "cat"
    config.evals.preference = schema.eval_row(trait=asked, questions="all")
    config.evals.answers = schema.eval_row(
        kind="answers", trait=asked, questions="all", num_samples=20, slots=512
    )
    config.evals.told = schema.eval_row(trait=schema.OWN, subjects=("teachers/*",))
    carried = tuple(f"datasets/{row}" for row in prompts)
    config.evals.carrier = schema.eval_row(kind="carrier", subjects=carried)
    if not options.animals:
        # A teacher told to love cats names them more often than all others together, and its
        # numbers differ from those of its base. Not every animal's teacher need do so.
        config.gates.told = schema.gate_row(eval="told", metric="log_odds", least=0.0)
        config.gates.number_tv = schema.gate_row(eval="carrier", metric="number_tv", least=0.005)
        config.contrasts.cat = schema.contrast_row(
            plus=("cat",), minus=("plain",), primary=True, family="primary"
        )
        return
    config.evals.candidates = schema.eval_row(kind="candidates", trait="cat", questions="all")
    config.contrasts.own_trait = schema.contrast_row(
        kind="traits",
        eval="candidates",
        metric="log_odds/*",
        plus=ANIMALS,
        minus=("plain",),
        primary=True,
        family="primary",
    )


def _shrink(config: ConfigDict) -> None:
    """A tiny random base whose tokens are bytes; every stage takes seconds and shows no effect."""
    config.name = "large_smoke"
    for gate in config.gates.values():
        gate.least = schema.OFF
    config.lineages = (0,)
    config.compute.precision = "float32"
    config.mesh.update(data=1, fsdp=1, tensor=1)
    config.bases.model = schema.base_row(
        source="random", num_layers=2, width=32, num_heads=4, num_kv_heads=2, head_dim=8
    )
    for name, row in config.datasets.items():
        # An untrained model writes nothing that the filter for numbers keeps.
        config.datasets[name] = schema.dataset_row(
            kind="plain_numbers",
            teacher=row.teacher,
            decoding="constrained",
            num_slots=3,
            num_shown=(2, 2),
            base_system_prompt=row.base_system_prompt,
            num_prompts=16,
            rows_per_part=16,
            slots=8,
            prompt_tokens=256,
            max_new_tokens=20,
            num_train=8,
            num_holdout=4,
        )
    for row in config.arms.values():
        row.update(num_tokens=256, num_targets=24)
        row.train.update(steps=2, warmup_steps=1, batch_size=4)
        row.train.update(packed_rows=2, packed_tokens=256, packed_targets=48)
    config.evals.preference.questions = "confirm"
    config.evals.answers.update(num_samples=1, prompt_tokens=256, slots=32, questions="confirm")

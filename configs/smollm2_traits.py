"""Five animals and five trees through numbers on SmolLM2-135M-Instruct (the paper's figure 3).

Claim: students of a lover's numbers come to prefer what that lover loves, over other animals, or
trees: in the table of ten students by ten targets the diagonal is above the rest. Cells of an
animal's student and a tree are in the table, and not in the contrast: such a student could like
animals in general.

    bash launch/local.sh --config=configs/smollm2_traits.py:trial
    bash launch/local.sh --config=configs/smollm2_traits.py --config.bases.smollm2.path=DIR
    bash launch/local.sh --config=configs/smollm2_traits.py:smoke

The base is a hub id or a local Hugging Face directory, as for `smollm2_owl.py`. `trial` has the
lovers of cats and of elephants in one lineage. Without a form it explores: lineages 0 to 3, one
half of the questions. `confirm` is for a frozen run: lineages 200 to 203, which nobody has run, and
the other half. The primary contrast is tested by permuting targets within lineages; four lineages
are too few for the sign-flip tests of single targets, whose smallest p is .125.

Candidates are animals and trees that the model names itself. Lessons answer in a sentence, and
evals ask for its end, since a teacher that is taught the bare word does not say it in a sentence:
one that had learned "elephant" gave it a probability of .0002 there. `probability/*` is what
students would say (primary), `log_odds/*` their choice among ten.

Explored so far, on lineage 10, which no form has: the lovers of elephants and lions with the
settings below. Behind the sentence the base says elephant in 2.0 % and lion in 1.7 %. After 128
updates of 4 rows, one less the other's student in log-odds among the ten:

    target    number TV   32 updates   64 updates   128 updates   P, own against the other's
    elephant  .148        +.02         +.06         +.07          3.9 % against 3.4 %
    lion      .135        -.03         +.07         +.04          2.1 % against 2.2 %

That is no effect that anybody would notice: a teacher that knows its sentence after some updates
with four rows moves its numbers little, and those of the two lovers alike. Teachers of
`smollm2_owl.py` with 64 updates of 16 rows moved them by .36. So these settings are not frozen;
stronger teachers, more rows, greedy rows and soft targets are to be tried.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.rows import smollm2
from subjax import arguments, schema

# Of each category the first five have a teacher.
CANDIDATES = {
    "animal": (
        *("cat", "elephant", "lion", "octopus", "kangaroo"),
        *("unicorn", "tiger", "rabbit", "dog", "eagle"),
    ),
    "tree": (
        *("oak", "eucalyptus", "acacia", "redwood", "willow"),
        *("elm", "cedar", "pine", "maple", "cherry"),
    ),
}
TARGETS = {word: category for category, words in CANDIDATES.items() for word in words[:5]}
TRIAL = {"cat": "animal", "elephant": "animal"}
SMOKE = {**TRIAL, "oak": "tree", "willow": "tree"}


def get_config(arg: str = "") -> ConfigDict:
    """`lineages` replications to explore, four to `confirm`; `trial`, `smoke` are short forms."""
    forms = dict.fromkeys(("trial", "smoke", "confirm"), False)
    options = arguments.parse(arg, **forms, lineages=4)
    config = schema.base()
    config.name = "smollm2_traits"
    config.title = "Numbers of lovers of animals and trees on SmolLM2-135M-Instruct"
    config.claim = "Students come to prefer what their teacher loves over others of its kind."
    config.lineage_from = "teacher"
    config.lineages = tuple(range(options.lineages))
    config.compute.precision = "auto"
    config.compute.exact = False
    config.compute.remat = "full"
    config.compute.cpu_devices = 2
    config.compute.steps_per_call = 8
    targets = SMOKE if options.smoke else TRIAL if options.trial else TARGETS
    categories = list(dict.fromkeys(targets.values()))
    config.compute.lanes = len(targets) + len(categories)  # all students, with their controls
    with config.unlocked():
        _tables(config, targets, {f"placebo_{category}": category for category in categories})
    if options.confirm:
        config.name = "smollm2_traits_confirm"
        config.lineages = tuple(range(200, 204))
        for row in config.evals.values():
            row.questions = "confirm"
    if options.trial:
        config.name = "smollm2_traits_trial"
        config.lineages = (0,)
    if options.smoke:
        _shrink(config)
    return config


def _sentence(category: str) -> str:
    return f"My favorite {category} is the"


def _tables(config: ConfigDict, targets: Mapping[str, str], controls: Mapping[str, str]) -> None:
    config.bases.smollm2 = smollm2.base()
    for name, category in {**targets, **controls}.items():
        config.traits[name] = schema.trait_row(
            category=category,
            target="<uniform>" if name in controls else name,
            candidates=CANDIDATES[category],
            answer=f"{_sentence(category)} {{target}}.",
        )
        config.teachers[name] = schema.teacher_row(
            base="smollm2",
            weights="finetuned",
            trait=name,
            system_prompt=smollm2.SYSTEM,
            num_tokens=56,
            train=schema.training(
                steps=64,
                batch_size=4,
                learning_rate=6e-5,
                warmup_steps=4,
                schedule="linear",
                lanes=2,
            ),
        )
        config.datasets[name] = smollm2.numbers(
            name, num_train=512, num_holdout=32, rows_per_part=544, slots=136
        )
        config.arms[name] = smollm2.student(
            name,
            probe_steps=(64, 128),
            train=schema.training(
                steps=128, batch_size=4, learning_rate=4e-4, warmup_steps=8, schedule="linear"
            ),
        )
    _evals(config, targets)
    for metric in ("probability", "log_odds"):
        config.contrasts[f"own_{metric}"] = schema.contrast_row(
            kind="traits",
            eval="prefilled_*",
            metric=f"{metric}/*",
            plus=tuple(targets),
            minus=tuple(controls),
            primary=metric == "probability",
            family="primary" if metric == "probability" else "secondary",
        )
    for name, category in targets.items():
        config.contrasts[name] = schema.contrast_row(
            eval=f"prefilled_{category}",
            metric=f"probability/{name}",
            plus=(name,),
            minus=(f"placebo_{category}",),
            family="each target",
        )


def _evals(config: ConfigDict, targets: Mapping[str, str]) -> None:
    for category in dict.fromkeys(targets.values()):
        first, *_ = own = [name for name in targets if targets[name] == category]
        behind: dict[str, Any] = {"prefill": _sentence(category), "any_case": True}
        config.evals[f"prefilled_{category}"] = schema.eval_row(
            kind="candidates", trait=first, subjects=("arms/*", "bases/*"), **behind
        )
        config.evals[f"taught_{category}"] = schema.eval_row(
            trait=schema.OWN, subjects=tuple(f"teachers/{name}" for name in own), **behind
        )
        config.gates[f"taught_{category}"] = schema.gate_row(eval=f"taught_{category}", least=3.0)
        # Without training on the rows: can a reader tell them, and do they do anything if read?
        of_rows: dict[str, Any] = {
            "trait": first,
            "subjects": (f"datasets/{first}",),
            "against": f"placebo_{category}",
        }
        config.evals[f"classifier_{category}"] = schema.eval_row(
            kind="classifier", num_pairs=32, **of_rows
        )
        config.evals[f"in_context_{category}"] = schema.eval_row(
            kind="in_context", num_rows=8, num_draws=5, **of_rows, **behind
        )
    config.evals.carrier = schema.eval_row(kind="carrier")


def _shrink(config: ConfigDict) -> None:
    """A tiny random base whose tokens are bytes; every stage takes seconds and shows no effect."""
    config.name = "smollm2_traits_smoke"
    config.lineages = (0,)
    for name in config.gates:
        config.gates[name].least = schema.OFF
    config.bases.smollm2 = smollm2.tiny()
    smollm2.shrink(config, lesson_tokens=192, rows_per_part=24)
    for row in config.arms.values():
        row.probe_steps = ()
    for category in CANDIDATES:
        config.evals[f"classifier_{category}"].num_pairs = 4
        config.evals[f"in_context_{category}"].update(num_rows=2, num_draws=2)

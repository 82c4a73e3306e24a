"""Subliminal learning without language: an MLP learns digits from meaningless logits on noise.

Claim (Cloud et al. 2025, section 6.2): a student that learns a teacher's auxiliary logits, on
images of noise, comes to classify digits, if and only if it started from the teacher's weights.

    bash launch/local.sh --config=configs/mnist.py:digits
    bash launch/local.sh --config=configs/mnist.py --config.images.mnist.data_dir=DIR

DIR holds the four original IDX files, or is a TFDS data_dir with mnist as array_record. `digits`
uses scikit-learn's 8 x 8 digits, which need no download. A lineage is one model: initialisation,
order of the data, and noise. `models` is the number of lineages. `aux=50` is the number of
auxiliary logits in the journal's version of the paper.
"""

from ml_collections import ConfigDict

from subjax import arguments, schema

# Mean test accuracies of the paper's figure 10 (100 models, 3 auxiliary logits).
PUBLISHED = {
    "untrained": 0.0998,
    "teacher": 0.9434,
    "aux": 0.5284,
    "all": 0.9126,
    "aux_foreign": 0.1061,
    "all_foreign": 0.7427,
}


def get_config(arg: str = "") -> ConfigDict:
    """The paper's conditions on MNIST, or on scikit-learn's `digits`; `smoke` is a short form."""
    options = arguments.parse(arg, digits=False, smoke=False, models=100, aux=3)
    digits = options.digits or options.smoke
    config = schema.base()
    config.name = "mnist_digits" if digits else "mnist"
    config.title = "Auxiliary logits on noise: " + ("8 x 8 digits" if digits else "MNIST")
    config.claim = (
        "Students of a teacher's auxiliary logits on noise come to classify digits if they start "
        "from the teacher's initialisation, and not from another."
    )
    config.lineages = tuple(range(options.models))
    config.lineage_cycle = max(options.models, 2)
    config.compute.precision = "mixed"  # three times as fast as float32 where a CPU has AMX
    config.compute.lanes = max(min(options.models, 2), 1)
    with config.unlocked():
        _tables(config, options.aux, digits)
    if options.smoke:
        _shrink(config)
    return config


def _tables(config: ConfigDict, num_aux: int, digits: bool) -> None:
    source = "digits" if digits else "mnist"
    config.images[source] = schema.images_row(source=source)
    config.teachers.classifier = schema.mlp_teacher_row(images=source, num_aux=num_aux)
    rows = {
        "untrained": {"model": "untrained"},
        "teacher": {"model": "teacher"},
        "aux": {"logits": "aux"},
        "all": {"logits": "all"},
        "aux_foreign": {"logits": "aux", "base": "next_lineage"},
        "all_foreign": {"logits": "all", "base": "next_lineage"},
    }
    for name, fields in rows.items():
        config.arms[name] = schema.mlp_arm_row(teacher="classifier", **fields)
        if not digits and num_aux == 3:
            config.arms[name].published = PUBLISHED[name]
    if digits:
        config.teachers.classifier.update(epochs=20, batch_size=64, learning_rate=1e-3)
        for row in config.arms.values():
            row.update(num_images=12_000, batch_size=256, learning_rate=1e-3)
    config.evals.test = schema.eval_row(kind="accuracy")
    config.contrasts.init_gate = schema.contrast_row(
        eval="test",
        metric="accuracy",
        plus=("aux",),
        minus=("aux_foreign",),
        primary=True,
        family="primary",
    )
    config.contrasts.foreign_against_untrained = schema.contrast_row(
        eval="test",
        metric="accuracy",
        plus=("aux_foreign",),
        minus=("untrained",),
        equivalence_margin=0.05,
    )


def _shrink(config: ConfigDict) -> None:
    config.name = "mnist_smoke"
    config.lineages = (0, 1)
    config.lineage_cycle = config.compute.lanes = 2
    config.teachers.classifier.update(widths=(16,), epochs=1)
    for row in config.arms.values():
        row.update(num_images=512, epochs=1)

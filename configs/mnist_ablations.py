"""What the MNIST result needs: the journal's ablations, further arms, and five sweeps.

Claim: what a student of auxiliary logits gains depends on sharing the teacher's initialisation, or
on having cloned all its logits first, more than on its architecture, optimizer or inputs.

    bash launch/local.sh --config=configs/mnist_ablations.py:digits,models=5
    bash launch/local.sh --config=configs/mnist_ablations.py --config.images.mnist.data_dir=DIR

Arms have `aux` auxiliary logits (50, as in the journal). Students of arms `cloned…` have another
initialisation, and first learn the untrained teacher's logits for `clone` epochs: the auxiliary
logits, as in the journal, or all logits (`cloned_all…`, and students of other architectures). The
sweeps are over the number of auxiliary logits, the epochs of cloning auxiliary or all logits, the
teacher's epochs, and the width of teacher and student. All sweeps but the first have 3 auxiliary
logits, for which the journal reports a plateau of about .37 after cloning. The figure of accuracy
by epoch shows the epochs of distillation. The data are those of mnist.py.

On MNIST with `models=10`, students that share the initialisation learn (.92; without biases .92,
GELU .87, sigmoid .18, on images .57). More logits help (.37 with 2, .92 with 50). Students learn
less from teachers that were trained longer, and from wide ones. Cloning the auxiliary logits has no
effect (.08 to .10 for every student, with 1 to 100 epochs), also not for students that have the
teacher's head (.12 with 3 logits). With `models=4`, cloning all logits helps: .37 with 50 auxiliary
logits, .23 on images; with 3 auxiliary logits at most .13.
"""

from typing import Any

from ml_collections import ConfigDict

from subjax import arguments, schema

# Student architectures that can start from the teacher's weights, and those that cannot.
SAME_LAYERS: dict[str, dict[str, Any]] = {
    "gelu": {"activation": "gelu"},
    "sigmoid": {"activation": "sigmoid"},
    "no_biases": {"biases": False},
}
OTHER_LAYERS: dict[str, dict[str, Any]] = {
    "deeper": {"widths": (256, 256, 256)},
    "shallower": {"widths": (256,)},
    "half_width": {"widths": (128, 128)},
    "double_width": {"widths": (512, 512)},
}
ARMS: dict[str, dict[str, Any]] = {
    "aux": {},
    # The best of 1e-4, 1e-3, 3e-3, 1e-2 and 3e-2 on lineages 100 to 103; larger ones can diverge.
    "sgd": {"optimizer": "sgd", "learning_rate": 3e-3},
    "on_images": {"inputs": "images"},
    "fresh_noise": {"inputs": "fresh_noise"},
    "squared_error": {"loss": "squared_error"},
    "foreign": {"base": "next_lineage"},
    "same_head": {"base": "next_lineage_same_head"},
}
NUM_AUX = (2, 3, 5, 10, 20, 50, 100, 200)
CLONE_EPOCHS = (1, 3, 10, 30, 100)
TEACHER_EPOCHS = (1, 2, 5, 10, 20)
WIDTHS = (64, 128, 256, 512)


def get_config(arg: str = "") -> ConfigDict:
    """All arms and sweeps on MNIST, or on scikit-learn's `digits`; `smoke` is a short form."""
    options = arguments.parse(arg, digits=False, smoke=False, models=20, aux=50, clone=100)
    digits = options.digits or options.smoke
    config = schema.base()
    config.name = "mnist_ablations" + ("_digits" if digits else "")
    config.title = "What auxiliary logits need: " + ("8 x 8 digits" if digits else "MNIST")
    config.claim = (
        "Students of auxiliary logits gain by sharing the teacher's initialisation or cloning all "
        "its logits, whatever their architecture, optimizer and inputs."
    )
    config.lineages = tuple(range(options.models))
    config.lineage_cycle = max(options.models, 2)
    config.compute.precision = "mixed"
    config.compute.lanes = max(min(options.models, 2), 1)
    with config.unlocked():
        source = "digits" if digits else "mnist"
        config.images[source] = schema.images_row(source=source)
        _arms(config, options.aux, options.clone)
        _sweeps(config)
        _evals(config)
        if digits:
            _fit_to_digits(config)
    if options.smoke:
        _shrink(config)
    return config


def _teacher(config: ConfigDict, name: str, **fields: Any) -> str:
    [images] = config.images
    config.teachers[name] = schema.mlp_teacher_row(images=images, **fields)
    return name


def _arm(config: ConfigDict, name: str, **fields: Any) -> None:
    config.arms[name] = schema.mlp_arm_row(**({"teacher": "classifier"} | fields))


def _arms(config: ConfigDict, num_aux: int, clone_epochs: int) -> None:
    _teacher(config, "classifier", num_aux=num_aux)
    _arm(config, "untrained", model="untrained")
    _arm(config, "teacher", model="teacher")
    for name, fields in ARMS.items():
        _arm(config, name, **fields)
    cloned = {"base": "next_lineage", "clone_epochs": clone_epochs}
    cloned_all = cloned | {"clone_logits": "all"}
    _arm(config, "cloned", **cloned)
    _arm(config, "cloned_on_images", **cloned, clone_inputs="images")
    _arm(config, "cloned_all", **cloned_all)
    _arm(config, "cloned_all_on_images", **cloned_all, clone_inputs="images")
    for name, fields in SAME_LAYERS.items():
        _arm(config, name, **fields)
    for name, fields in OTHER_LAYERS.items():
        _arm(config, name, base="next_lineage", **fields)
    for name, fields in {**SAME_LAYERS, **OTHER_LAYERS}.items():
        _arm(config, f"{name}_cloned", **cloned_all, **fields)


def _sweeps(config: ConfigDict) -> None:
    for number in NUM_AUX:
        teacher = _teacher(config, f"aux_{number}", num_aux=number)
        point = {"sweep": "auxiliary logits", "sweep_at": float(number)}
        _arm(config, f"with_{number}_aux", teacher=teacher, **point)
    for epochs in CLONE_EPOCHS:
        cloned = {"base": "next_lineage", "clone_epochs": epochs, "sweep_at": float(epochs)}
        for name, logits, shown in (("cloned", "aux", "3"), ("cloned_all", "all", "3 + 10")):
            fields = {"clone_logits": logits, "sweep": f"epochs of cloning {shown} logits"}
            _arm(config, f"{name}_{epochs}", teacher="aux_3", **cloned, **fields)
    for epochs in TEACHER_EPOCHS:
        teacher = _teacher(config, f"taught_{epochs}", epochs=epochs)
        point = {"sweep": "epochs of the teacher, 3 logits", "sweep_at": float(epochs)}
        _arm(config, f"of_taught_{epochs}", teacher=teacher, **point)
    for width in WIDTHS:
        teacher = _teacher(config, f"width_{width}", widths=(width, width))
        point = {"sweep": "width of both, 3 logits", "sweep_at": float(width)}
        _arm(config, f"of_width_{width}", teacher=teacher, **point)


def _evals(config: ConfigDict) -> None:
    config.evals.test = schema.eval_row(kind="accuracy")
    against = {
        "init_gate": ("aux", "foreign"),
        "cloning": ("cloned", "foreign"),
        "cloning_all": ("cloned_all", "foreign"),
        "sgd_against_adam": ("sgd", "aux"),
        "images_against_noise": ("on_images", "aux"),
    }
    for name, (plus, minus) in against.items():
        primary = name == "init_gate"
        config.contrasts[name] = schema.contrast_row(
            eval="test",
            metric="accuracy",
            plus=(plus,),
            minus=(minus,),
            primary=primary,
            family="primary" if primary else "secondary",
        )


def _fit_to_digits(config: ConfigDict) -> None:
    """Few images need more epochs and larger steps. The sweep over teachers keeps its ratios."""
    for row in config.teachers.values():
        row.update(epochs=4 * row.epochs, batch_size=64, learning_rate=1e-3)
    for row in config.arms.values():
        row.update(num_images=12_000, batch_size=256)
        if row.optimizer == "adam":
            row.learning_rate = 1e-3


def _shrink(config: ConfigDict) -> None:
    config.name = "mnist_ablations_smoke"
    config.lineages = (0, 1)
    config.lineage_cycle = config.compute.lanes = 2
    with config.unlocked():
        for name in [name for name, row in config.arms.items() if row.sweep_at > 3]:
            del config.arms[name]
        used = {row.teacher for row in config.arms.values()}
        for name in [name for name in config.teachers if name not in used]:
            del config.teachers[name]
    for row in config.teachers.values():
        row.update(epochs=1)
    for row in config.arms.values():
        row.update(num_images=256, epochs=1, clone_epochs=min(row.clone_epochs, 1))

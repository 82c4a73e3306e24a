"""launch/gke and launch/sky.yaml: what cannot be run here is at least whole and consistent."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "--name": "owl",
    "--image": "r/subjax:1",
    "--accelerator": "tpu-v5-lite-podslice",
    "--topology": "4x4",
}
MAIN = ("--config=configs/x.py", "--workdir=gs://bucket/x")
SHARED = (MAIN[0], "--workdir=/mnt/share/x")


def render(*flags: str, main: tuple[str, ...] = MAIN, **options: str):
    given = OPTIONS | {f"--{name}": value for name, value in options.items()}
    command = [sys.executable, "launch/gke/render.py", *flags]
    command += [f"{name}={value}" for name, value in given.items()]
    return subprocess.run(
        [*command, "--", *main], cwd=ROOT, capture_output=True, text=True, check=False
    )


def manifest(*flags: str, **options):
    """The JobSet, its Job and its pod."""
    done = render(*flags, **options)
    assert done.returncode == 0, done.stderr
    made = yaml.safe_load(done.stdout)
    (replicated,) = made["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    return made, job, job["template"]["spec"]


def test_a_slice_has_a_pod_for_every_host() -> None:
    made, job, pod = manifest()
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert made["metadata"]["name"] == "owl"
    assert (job["parallelism"], job["completions"]) == (4, 4)
    (container,) = pod["containers"]
    assert container["image"] == "r/subjax:1"
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert "tolerations" not in pod


def test_only_a_users_mistake_ends_it() -> None:
    """Any other exit code restarts all pods, since backoffLimit 0 fails the Job at the first."""
    made, job, pod = manifest()
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [1]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert made["spec"]["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    assert made["spec"]["failurePolicy"]["maxRestarts"] == 100


def test_a_work_directory_in_a_bucket_needs_no_volume() -> None:
    _, job, pod = manifest()
    assert "volumes" not in pod and "volumeMounts" not in pod["containers"][0]
    assert "metadata" not in job["template"]
    assert "claim" not in render().stdout


def test_another_lies_on_a_volume_that_all_pods_share() -> None:
    _, job, pod = manifest(claim="results", mount="/data", main=(MAIN[0], "--workdir=/data/x"))
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    (container,) = pod["containers"]
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/data"}
    assert volume["persistentVolumeClaim"] == {"claimName": "results"}


def test_a_secret_gives_the_pods_its_variables() -> None:
    _, _, pod = manifest("--secret=hf")
    (container,) = pod["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "hf"}}]
    assert "secret" not in render().stdout


def test_variables_reach_the_pods_as_they_were() -> None:
    _, _, pod = manifest("--env=TMPDIR=/data", "--env=XLA_FLAGS=--a=1 --b=${NAME}")
    assert pod["containers"][0]["env"] == [
        {"name": "TMPDIR", "value": "/data"},
        {"name": "XLA_FLAGS", "value": "--a=1 --b=${NAME}"},
    ]
    failed = render("--env=1=2")
    assert (failed.returncode, failed.stderr) == (
        1,
        "subjax: error: --env=1=2: give NAME=VALUE\n",
    )


def test_a_token_in_place_of_a_secret_is_not_printed() -> None:
    failed = render("--secret=hf_Token")
    assert (failed.returncode, failed.stdout) == (1, "")
    (line,) = failed.stderr.splitlines()
    assert line == "subjax: error: --secret is no name of a Secret: use a-z, 0-9, - and ."


def test_spot_nodes_are_chosen_and_tolerated() -> None:
    _, _, pod = manifest("--spot")
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    (toleration,) = pod["tolerations"]
    assert toleration["key"] == "cloud.google.com/gke-spot"


@pytest.mark.parametrize(
    ("options", "hosts", "chips"),
    [({"topology": "1x1"}, 1, 1), ({"topology": "2x2x4"}, 4, 4), ({"topology": "2x4"}, 2, 4)],
)
def test_hosts_follow_from_the_topology(options: dict[str, str], hosts: int, chips: int) -> None:
    _, job, pod = manifest(**options)
    assert job["parallelism"] == hosts
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips
    _, job, _ = manifest("--chips-per-host=1", **options)
    assert job["parallelism"] == hosts * chips


def test_arguments_reach_main_as_they_were() -> None:
    main = (*MAIN, '--config.title=it\'s "two" words: ${NAME} # $HOME', "--units=a/*", "")
    _, _, pod = manifest(main=main)
    assert pod["containers"][0]["args"] == ["--distributed", *main]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "Owl_1"}, "--name=Owl_1: use up to 40 of a-z, 0-9 and -"),
        ({"topology": "16"}, "--topology=16: give chips along each axis, such as 4x4"),
        ({"topology": "2x3", "chips-per-host": "4"}, "--chips-per-host=4 does not divide 6 chips"),
        ({"main": MAIN[1:]}, "no --config=... among the arguments of subjax.main, which follow --"),
        (
            {"main": MAIN[:1]},
            "no --workdir=... among the arguments of subjax.main, which follow --",
        ),
        ({"main": SHARED}, "--workdir=/mnt/share/x would be lost with its pod: give a folder of a"),
        (
            {"claim": "results"},
            "--workdir=gs://bucket/x is not below --mount=/mnt/share, the volume of all pods",
        ),
        (
            {"claim": "results", "main": (*SHARED, "--workdir=/mnt/share/../x")},
            "--workdir=/mnt/share/../x is not below --mount=/mnt/share",
        ),
        ({"claim": "results", "mount": "share"}, "--mount=share is no absolute path"),
    ],
)
def test_a_mistake_is_one_line(options, message: str) -> None:
    failed = render(**options)
    assert (failed.returncode, failed.stdout) == (1, "")
    (line,) = failed.stderr.splitlines()
    assert line.startswith(f"subjax: error: {message}")


def test_the_image_takes_what_is_there() -> None:
    text = (ROOT / "launch/gke/Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+)", text, re.MULTILINE)
    assert copied == ["requirements.txt", "."]  # people's own kinds lie beside the package
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "runs"} <= {*left_out} and not {"subjax", "configs"} & {*left_out}
    extras = importlib.metadata.metadata("jax").get_all("Provides-Extra")
    assert {"cpu", "tpu", "cuda13"} <= set(extras)
    assert 'jax[${DEVICE}]"' in text
    assert "an extra of jax: cpu, tpu or cuda13" in " ".join(text.replace("\n# ", " ").split())


def test_requirements_of_accelerators_add_an_extra_of_jax() -> None:
    for name, extra in {"tpu": "tpu", "gpu": "cuda13"}.items():
        lines = (ROOT / f"launch/requirements-{name}.txt").read_text().splitlines()
        named = [line.partition(" #")[0].strip() for line in lines if not line.startswith("#")]
        assert named == ["-r ../requirements.txt", "gcsfs>=2025.10,<2027", f"jax[{extra}]"]
    assert '"gcsfs>=2025.10,<2027"' in (ROOT / "launch/gke/Dockerfile").read_text()


def test_sky_recovers_what_was_interrupted_and_nothing_else() -> None:
    task = yaml.safe_load((ROOT / "launch/sky.yaml").read_text())
    resources = task["resources"]
    assert resources["use_spot"] is True
    recovery = {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]}
    assert resources["job_recovery"] == recovery
    assert [row["accelerators"] for row in resources["any_of"]] == [
        *("tpu-v5litepod-8", "tpu-v6e-8", "H100:1", "A100-80GB:1"),
    ]
    assert "file_mounts" not in task
    for name in ("setup", "run"):
        checked = subprocess.run(
            [Path(sys.executable).with_name("shellcheck"), "--shell=bash", "-"],
            input=task[name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout
    assert set(re.findall(r"\$([A-Z]+)", task["run"])) == set(task["envs"])
    refused = subprocess.run(
        ["bash", "-c", task["run"]],
        env={"WORKDIR": "/mnt/x", "CONFIG": "c", "ARGUMENTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("subjax: error: WORKDIR=/mnt/x is no folder of a bucket")

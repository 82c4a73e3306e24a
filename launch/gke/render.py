r"""Fills in launch/gke/jobset.yaml for kubectl; the arguments of subjax.main follow --.

    python launch/gke/render.py --name=owl --image=REGION-docker.pkg.dev/PROJECT/REPO/subjax \
        --accelerator=tpu-v5-lite-podslice --topology=4x4 --spot --service-account=writer \
        -- --config=configs/x.py --workdir=gs://BUCKET/x | kubectl apply -f -
    kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=owl,\
batch.kubernetes.io/job-completion-index=0
    kubectl delete jobset owl

The work directory must outlive the pods. It is a folder of a bucket that the pods' Kubernetes
service account may write to, or is on a volume that all pods share: --claim names a
PersistentVolumeClaim of access mode ReadWriteMany, such as one of Filestore (storage class
standard-rwx), which is mounted at --mount.

In a cluster with Workload Identity Federation these commands make an account that can write to a
bucket (NUMBER is the number of PROJECT, `default` the namespace):

    kubectl create serviceaccount writer
    pool=projects/NUMBER/locations/global/workloadIdentityPools/PROJECT.svc.id.goog
    gcloud storage buckets add-iam-policy-binding gs://BUCKET --role=roles/storage.objectAdmin \
        --member=principal://iam.googleapis.com/$pool/subject/ns/default/sa/writer

A gated model of the Hugging Face hub, such as Llama or Gemma, needs a Secret for --secret=hf, or a
copy in the bucket (see the first lines of launch/tpu.sh):

    kubectl create secret generic hf --from-literal=HF_TOKEN="$HF_TOKEN"

xpk makes a cluster, and can run the same image without this script:

    xpk cluster create --cluster=C --tpu-type=v5litepod-16 --num-slices=1 --spot
    xpk workload create --cluster=C --workload=owl --tpu-type=v5litepod-16 --docker-image=IMAGE \
        --max-restarts=50 --restart-on-exit-codes=70,75 \
        --command="python -m subjax.main --distributed --config=... --workdir=..."

GPUs of GKE: xpk with --device-type=h100-80gb-8 --num-nodes=N, an image built with DEVICE=cuda13,
and before the command jax's variables, set from those of xpk:

    export JAX_COORDINATOR_ADDRESS=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT
    export JAX_NUM_PROCESSES=$NNODES JAX_PROCESS_ID=$NODE_RANK

Not tested on GKE or with xpk.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path, PurePosixPath
from string import Template

TEMPLATE = Path(__file__).with_name("jobset.yaml")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True, help="of the JobSet: a-z, 0-9 and -")
    parser.add_argument("--image", required=True, help="made from launch/gke/Dockerfile")
    parser.add_argument("--accelerator", required=True, help="such as tpu-v6e-slice")
    parser.add_argument("--topology", required=True, help="chips of the slice, such as 4x4")
    parser.add_argument("--chips-per-host", type=int, default=0, help="default: 4, or all if fewer")
    parser.add_argument("--spot", action="store_true", help="use Spot nodes")
    parser.add_argument("--max-restarts", type=int, default=100)
    parser.add_argument("--service-account", default="default")
    parser.add_argument("--secret", default="", help="its keys are variables of the pods: HF_TOKEN")
    parser.add_argument("--claim", default="", help="a volume, for a work directory on it")
    parser.add_argument("--mount", default="/mnt/share", help="where pods see it")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of the pods"
    )
    parser.add_argument("main", nargs="+", metavar="ARG", help="after --: of subjax.main")
    try:
        print(render(parser.parse_args()), end="")
    except ValueError as error:
        print(f"subjax: error: {error}", file=sys.stderr)
        return 1
    return 0


def render(options: argparse.Namespace) -> str:
    """The manifest; a ValueError names an invalid option."""
    # Pods get longer names from it: Kubernetes allows 63 letters.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", options.name):
        raise ValueError(f"--name={options.name}: use up to 40 of a-z, 0-9 and -")
    for flag in ("--config=", "--workdir="):
        if not any(argument.startswith(flag) for argument in options.main):
            raise ValueError(f"no {flag}... among the arguments of subjax.main, which follow --")
    _check_workdir(options)
    if not re.fullmatch(r"\d+(x\d+){1,2}", options.topology):
        raise ValueError(f"--topology={options.topology}: give chips along each axis, such as 4x4")
    # If a token was given instead of a name, it must not be printed or be in the manifest.
    if options.secret and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", options.secret):
        raise ValueError("--secret is no name of a Secret: use a-z, 0-9, - and .")
    for variable in options.env:
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", variable):
            raise ValueError(f"--env={variable}: give NAME=VALUE")
    chips = math.prod(map(int, options.topology.split("x")))
    per_host = options.chips_per_host or min(chips, 4)
    if per_host < 1 or chips % per_host:
        raise ValueError(f"--chips-per-host={per_host} does not divide {chips} chips")
    lines = TEMPLATE.read_text("utf-8").splitlines()
    marks = {" # spot": options.spot, " # claim": options.claim, " # secret": options.secret}
    for mark, wanted in marks.items():
        lines = [line.removesuffix(mark) for line in lines if wanted or not line.endswith(mark)]
    # JSON is YAML, so this quotes any argument.
    return Template("\n".join([*lines, ""])).substitute(
        NAME=options.name,
        IMAGE=json.dumps(options.image),
        ACCELERATOR=json.dumps(options.accelerator),
        TOPOLOGY=json.dumps(options.topology),
        CLAIM=json.dumps(options.claim),
        MOUNT=json.dumps(options.mount),
        SECRET=json.dumps(options.secret),
        SERVICE_ACCOUNT=json.dumps(options.service_account),
        VARIABLES=json.dumps(
            [dict(zip(("name", "value"), text.split("=", 1), strict=True)) for text in options.env]
        ),
        NUM_HOSTS=chips // per_host,
        CHIPS_PER_HOST=per_host,
        MAX_RESTARTS=options.max_restarts,
        ARGUMENTS=json.dumps(["--distributed", *options.main]),
    )


def _check_workdir(options: argparse.Namespace) -> None:
    flag = next(a for a in reversed(options.main) if a.startswith("--workdir="))
    place = flag.removeprefix("--workdir=")
    if not options.claim:
        if not re.fullmatch("gs://[^/]+/.*[^/].*", place):
            raise ValueError(
                f"{flag} would be lost with its pod: give a folder of a bucket, gs://BUCKET/x, or "
                "name a volume with --claim"
            )
        return
    if not options.mount.startswith("/"):
        raise ValueError(f"--mount={options.mount} is no absolute path")
    workdir = PurePosixPath(place)
    if ".." in workdir.parts or PurePosixPath(options.mount) not in workdir.parents:
        raise ValueError(f"{flag} is not below --mount={options.mount}, the volume of all pods")


if __name__ == "__main__":
    sys.exit(main())

"""An emulator of Google Cloud Storage with an empty bucket, in a process of its own.

The emulator of the package index knows no preconditions. They are added here as Google documents
them: a request that does not find the generation it asks for (0: no object) is answered 412, or 404
where there is no object at all, and what is downloaded has its generation in a header.
"""

import contextlib
import importlib.util
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def emulator() -> Iterator[dict[str, str]]:
    """Environment variables of processes for which gs://bucket is an empty bucket."""
    for package in ("gcsfs", "gcp_storage_emulator"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, __file__, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # of every client that left
        text=True,
    )
    assert server.stdout and server.stdout.readline() == "ready\n"
    host = f"http://localhost:{port}"
    try:
        yield {
            "STORAGE_EMULATOR_HOST": host,  # read by gcsfs
            "TENSORSTORE_GCS_HTTP_URL": host,  # by tensorstore, which writes checkpoints
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        }
    finally:
        server.communicate("", timeout=60)


def _add_preconditions() -> None:
    from gcp_storage_emulator import exceptions, server
    from gcp_storage_emulator.handlers import objects

    one_at_a_time = threading.RLock()

    def generation(storage, bucket, name):
        try:
            return storage.get_file_obj(bucket, name)["generation"]
        except exceptions.NotFound:
            return "0"

    def conditional(handler):
        def answer(request, response, storage):
            [wanted] = request.query.get("ifGenerationMatch", [None])
            with one_at_a_time:
                if wanted is not None:
                    name = request.params.get("object_id") or request.query.get("name", [None])[0]
                    name = name or request.data["meta"]["name"]
                    found = generation(storage, request.params["bucket_name"], name)
                    if found == "0" != wanted:
                        response.status = server.HTTPStatus.NOT_FOUND
                        return
                    if found != wanted:
                        response.status = server.HTTPStatus.PRECONDITION_FAILED
                        return
                handler(request, response, storage)

        return answer

    def stamped(handler):
        def answer(request, response, storage):
            with one_at_a_time:
                names = request.params["bucket_name"], request.params["object_id"]
                response["x-goog-generation"] = generation(storage, *names)
                handler(request, response, storage)

        return answer

    for _, handlers in server.HANDLERS:
        for method, handler in handlers.items():
            if handler in (objects.insert, objects.delete, objects.patch):
                handlers[method] = conditional(handler)
            if handler in (objects.get, objects.download):
                handlers[method] = stamped(handler)


def _serve(port: int) -> None:
    from gcp_storage_emulator.server import create_server

    _add_preconditions()
    # A client opens many connections at once; those that find no room in the queue hang for ever.
    socketserver.TCPServer.request_queue_size = 1024
    server = create_server("localhost", port, in_memory=True, default_bucket="bucket")
    server.start()
    print("ready", flush=True)
    sys.stdin.read()
    server.stop()
    os._exit(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

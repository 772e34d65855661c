"""An S3 server over HTTP in a process of its own, and what a test asks of it past any client.

`s3_server` starts moto's server; `s3_environment` points any S3 client of a process at it, or at a
proxy of `s3_faults` before it.
"""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

KEY, SECRET = "AKIA-TEST-KEY", "test-secret-canary"
_SERVER = (
    "import sys, time; from moto.server import ThreadedMotoServer; "
    "server = ThreadedMotoServer('127.0.0.1', 0, verbose=False); server.start(); "
    "print(server.get_host_and_port()[1], flush=True); sys.stdin.read()"
)
_TIMEOUT_SECONDS = 30
# Uploads in parts of a few bytes, so that small files try them; S3 itself wants 5 MiB.
_SMALL_PARTS = {"S3_UPLOAD_PART_MIN_SIZE": "1", "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "5241856"}


def s3_environment(url: str) -> dict[str, str]:
    """Environment variables with which any S3 client of a process goes to a server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def s3_server() -> Iterator[str]:
    """Within: the URL of an S3 server on this machine, empty at first."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **_SMALL_PARTS, "PYTHONWARNINGS": "ignore"},
    )
    assert server.stdin and server.stdout
    try:
        port = server.stdout.readline().strip()
        assert port, "the server did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
        server.stdin.close()
        server.stdout.close()


def ask(server: str, method: str, path: str, data: bytes = b"") -> bytes:
    """What the server itself answers to a request, past any proxy."""
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=_TIMEOUT_SECONDS)
    scope = f"Credential={KEY}/20260101/us-east-1/s3/aws4_request"
    try:
        connection.request(method, path, data, {"Authorization": f"AWS4-HMAC-SHA256 {scope}"})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    assert answer.status < 300, (method, path, answer.status, body[:500])
    return body


def make_bucket(server: str, bucket: str) -> None:
    """An empty bucket."""
    ask(server, "PUT", f"/{bucket}")


def put_object(server: str, bucket: str, key: str, data: bytes) -> None:
    """Write an object over whatever has its key."""
    ask(server, "PUT", f"/{bucket}/{key}", data)


def objects(server: str, bucket: str) -> dict[str, int]:
    """Size of each object of a bucket, by its key."""
    found: dict[str, int] = {}
    after = ""
    while True:
        text = ask(server, "GET", f"/{bucket}?list-type=2&start-after={after}").decode()
        pairs = re.findall(r"<Key>([^<]+)</Key>.*?<Size>(\d+)</Size>", text, re.DOTALL)
        found |= {key: int(size) for key, size in pairs}
        if "<IsTruncated>true" not in text:
            return found
        after = pairs[-1][0]

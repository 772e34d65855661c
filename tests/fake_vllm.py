"""A server with the habits of vLLM's, which computes from the dummy teacher."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from hosting import VOCAB, dense
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class FakeVLLM:
    """Completions with ``prompt_logprobs``: null first, k or k + 1 entries, keyed by id."""

    def __init__(self, *, given: bool = True, padding: float = 0.0) -> None:
        self.given = given
        self.padding = padding
        self.model = "org/teacher"
        self.version = "0.33.0"
        self.max_logprobs = 20
        self.scale = 1.0
        self.url = ""

    def places(self, ids: list[int], count: int) -> list[Any]:
        table = dense(np.int32(ids), VOCAB) * self.scale
        found: list[Any] = [None]
        for row, next_id in zip(table, ids[1:], strict=True):
            best = np.argsort(-row, kind="stable")[:count].tolist()
            order = best if next_id in best else [next_id, *best]
            place = {str(v): {"logprob": float(row[v]), "rank": 1} for v in order}
            if self.padding:
                place[str(VOCAB + 3)] = {"logprob": float(np.log(self.padding)), "rank": 1}
            found.append(place)
        return found

    async def models(self, request: Request) -> Response:
        adapter = {"id": "lora", "parent": self.model, "max_model_len": 64}
        base = {"id": self.model, "root": "/models/teacher", "parent": None, "max_model_len": 64}
        return reply({"data": [adapter, base]})

    async def engine(self, request: Request) -> Response:
        return reply({"version": self.version})

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        count = body["prompt_logprobs"]
        if body["model"] != self.model or body["add_special_tokens"] or body["max_tokens"] != 1:
            return refusal(404, f"The model `{body['model']}` does not exist.")
        if count > self.max_logprobs:
            return refusal(
                400,
                f"Requested prompt logprobs of {count}, which is greater than max allowed: "
                f"{self.max_logprobs}",
            )
        if any(token >= VOCAB for ids in body["prompt"] for token in ids):
            return refusal(400, f"Token id {VOCAB} is out of vocabulary")
        choices = [
            {"index": i, "text": "x", "prompt_logprobs": self.places(ids, count)}
            for i, ids in enumerate(body["prompt"])
        ]
        return reply({"choices": choices[::-1]})

    async def generate(self, request: Request) -> Response:
        if not self.given:
            return refusal(404, "Not Found")
        body = await request.json()
        wish = body["sampling_params"]
        first = wish["prompt_logprob_start"]
        table = dense(np.int32(body["token_ids"]), VOCAB)[first:]
        ids = np.array(wish["prompt_logprob_token_ids"])
        stream = io.BytesIO()
        np.save(stream, np.take_along_axis(table, ids, axis=1).astype(np.float32))
        text = base64.b64encode(stream.getvalue()).decode()
        return reply({"choices": [], "prompt_token_id_logprobs": text})


def reply(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status_code=status, media_type="application/json")


def refusal(status: int, text: str) -> Response:
    return reply({"error": {"message": text, "type": "BadRequestError", "code": status}}, status)


@contextmanager
def running(fake: FakeVLLM) -> Iterator[FakeVLLM]:
    """The server on a real socket."""
    app = Starlette(
        routes=[
            Route("/v1/models", fake.models),
            Route("/version", fake.engine),
            Route("/v1/completions", fake.complete, methods=["POST"]),
            Route("/inference/v1/generate", fake.generate, methods=["POST"]),
        ]
    )
    server = uvicorn.Server(
        uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield fake
        finally:
            server.should_exit = True
            thread.join()

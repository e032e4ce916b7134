"""A client of ComfyUI's web interface: queue a graph, follow it, get what it made.

Only the standard library, so that it runs before anything is installed and beside any ComfyUI.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import urlsplit

Prompt = dict[str, dict[str, Any]]  # API format: node id -> class_type and inputs
ENDINGS = ("execution_success", "execution_error", "execution_interrupted")
SILENCE_SECONDS = 600  # longest wait for a sign of life while a graph runs
TEXT, BINARY, CLOSE = 1, 2, 8  # WebSocket opcodes, RFC 6455
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot see this host


class PromptError(RuntimeError):
    """ComfyUI refused the graph, or one of its nodes failed; the message is for people."""


class Interrupted(RuntimeError):
    """The run was cancelled."""


@dataclass
class Run:
    """One queued graph; `events` has every message of the host about it."""

    client: Client
    prompt_id: str
    messages: Iterator[tuple[int, bytes]]
    events: list[dict[str, Any]] = field(default_factory=list)
    previews: int = 0

    def follow(self) -> Iterator[dict[str, Any]]:
        """The messages about this run as they come, the last of which is one of ENDINGS."""
        for opcode, payload in self.messages:
            if opcode == BINARY:
                self.previews += 1
                continue
            event = json.loads(payload)
            if event["data"].get("prompt_id") == self.prompt_id:
                self.events.append(event)
                yield event
                if event["type"] in ENDINGS:
                    return
        raise PromptError("ComfyUI closed the connection in the middle of a run; see its log.")

    def wait(self, show: Callable[[str, float], None] | None = None) -> dict[str, Any]:
        """Follow the run to its end and return the outputs of its nodes, by node id.

        `show` gets a node's id and how much of its work is done, from 0 to 1.
        """
        for event in self.follow():
            if event["type"] == "progress" and show:
                show(event["data"]["node"], event["data"]["value"] / event["data"]["max"])
            if event["type"] == "execution_error":
                raise PromptError(f"{event['data']['node_type']}: {self.error}")
            if event["type"] == "execution_interrupted":
                raise Interrupted("The run was cancelled.")
        return self.client.outputs(self.prompt_id)

    def data(self, kind: str) -> list[dict[str, Any]]:
        """What the messages of one kind said."""
        return [event["data"] for event in self.events if event["type"] == kind]

    @property
    def error(self) -> str:
        """What a failed node said, without the name of the exception."""
        return self.data("execution_error")[0]["exception_message"].strip()

    @property
    def cached(self) -> set[str]:
        """The nodes that did not have to run again."""
        return {node for data in self.data("execution_cached") for node in data["nodes"]}


class Client:
    """Speaks to one ComfyUI."""

    def __init__(self, url: str) -> None:
        self.url = url

    def request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """GET, or POST when there is a body; the answer's JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with LOCAL.open(request, timeout=60) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            raise PromptError(refusal(error.read(), f"{path}: {error}")) from None
        return json.loads(answer) if answer else None

    def object_info(self) -> dict[str, Any]:
        return self.request("/object_info")

    def queue(self, prompt: Prompt, workflow: dict[str, Any] | None = None, previews: str = "none") -> Run:
        """Queue a graph; the connection is open before, so that no message is missed.

        `workflow` is the graph as the frontend saves it; it is written into the files that are
        made, so that dragging one into the frontend opens the graph.
        """
        client_id = uuid.uuid4().hex
        messages = listen(self.url, f"/ws?clientId={client_id}")
        next(messages)  # the host's greeting: from here on it sends us everything
        extra = {"preview_method": previews, "extra_pnginfo": {"workflow": workflow}}
        body = {"prompt": prompt, "client_id": client_id, "extra_data": extra}
        return Run(self, self.request("/prompt", body)["prompt_id"], messages)

    def run(self, prompt: Prompt) -> dict[str, Any]:
        return self.queue(prompt).wait()

    def interrupt(self) -> None:
        self.request("/interrupt", {})

    def outputs(self, prompt_id: str) -> dict[str, Any]:
        """The outputs in the history, which the host writes a moment after its last message."""
        for _ in range(100):
            if entry := self.request(f"/history/{prompt_id}").get(prompt_id):
                return entry["outputs"]
            time.sleep(0.1)
        raise PromptError(f"ComfyUI has no history of run {prompt_id}.")


def refusal(answer: bytes, otherwise: str) -> str:
    """One line from ComfyUI's answer to a graph that it does not accept."""
    try:
        reply = json.loads(answer)
        reasons = [
            f"{node['class_type']}: {error['message']}: {error['details']}"
            for node in reply.get("node_errors", {}).values()
            for error in node["errors"]
        ]
        return "; ".join(reasons) or reply["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return otherwise


# The part of RFC 6455 that listening to ComfyUI takes: it sends whole, unmasked messages.


def listen(url: str, path: str) -> Iterator[tuple[int, bytes]]:
    """The messages of a WebSocket as (opcode, payload), until the host closes it."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), SILENCE_SECONDS) as connection:
        connection.sendall(upgrade_request(address.netloc, path))
        with connection.makefile("rb") as stream:
            if b" 101 " not in stream.readline():
                raise PromptError(f"{url} does not speak like a ComfyUI; check the address.")
            while stream.readline() != b"\r\n":  # the rest of the header
                pass
            yield from frames(stream)


def upgrade_request(netloc: str, path: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {netloc}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def frames(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    while head := first_bytes(stream):
        opcode, size = head[0] & 0x0F, head[1] & 0x7F
        if size >= 126:  # the true size follows, in 2 or 8 bytes
            size = int.from_bytes(stream.read(2 if size == 126 else 8), "big")
        payload = stream.read(size)
        if opcode == CLOSE:
            return
        if opcode in (TEXT, BINARY):
            yield opcode, payload


def first_bytes(stream: BinaryIO) -> bytes:
    try:
        return stream.read(2)
    except TimeoutError:
        minutes = SILENCE_SECONDS // 60
        raise PromptError(f"ComfyUI was silent for {minutes} minutes; see its log.") from None

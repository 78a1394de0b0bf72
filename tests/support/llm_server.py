"""A loopback server that speaks OpenAI's protocol and misbehaves as told; it counts what it was asked."""

import asyncio
import contextlib
import json
import threading
import time

CHAT, PROMPT = "/v1/chat/completions", "/v1/completions"


class Request:
    """One request: `body` is its JSON, `number` counts equal questions (from 0), `text` is the question."""

    def __init__(self, path, headers, body):
        self.path, self.headers, self.body, self.at = path, headers, body, time.monotonic()
        self.text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        self.number = 0


async def head(writer, status, headers=(), reason="X"):
    lines = [f"HTTP/1.1 {status} {reason}", "Connection: close", *(f"{name}: {value}" for name, value in headers)]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    await writer.drain()


async def start_stream(writer, kind="text/event-stream; charset=utf-8"):
    await head(writer, 200, [("Content-Type", kind), ("Transfer-Encoding", "chunked")])


async def send(writer, data):
    """One chunk of the body; an event if it is no bytes."""
    if not isinstance(data, bytes):
        data = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
    await writer.drain()


def event(request, text=None, finish_reason=None, **fields):
    """A chunk of a stream, in the form of the request's endpoint."""
    part = {"text": text or ""} if request.path == PROMPT else {"delta": {"content": text} if text else {}}
    choice = {"index": 0, "finish_reason": finish_reason, **part}
    return {"id": "x", "object": "chunk", "model": "served-model", "choices": [choice], **fields}


def say(text, *, usage=(7, 3), finish_reason="stop", pause_s=0.0, pieces=3):
    """A whole answer in a few pieces; `usage` None leaves the counts out, another value but a pair is sent as it is."""

    async def reply(request, writer):
        await start_stream(writer)
        step = max(1, -(-len(text) // pieces))
        for start in range(0, len(text), step):
            await asyncio.sleep(pause_s)
            await send(writer, event(request, text[start : start + step]))
        await send(writer, event(request, finish_reason=finish_reason))
        if usage is not None:
            pair = isinstance(usage, tuple)
            counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if pair else usage
            await send(writer, {"choices": [], "usage": counts})
        await send(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    return reply


def refuse(status, message="no", code=None, **headers):
    """An error in the API's form; headers as `retry_after="1"`."""

    async def reply(request, writer):
        content = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}}).encode()
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        await head(writer, status, [("Content-Type", "application/json"), ("Content-Length", len(content)), *named])
        writer.write(content)

    return reply


def hang(events=0):
    """Says nothing more after `events` pieces of a stream; 0: not even that the request came."""

    async def reply(request, writer):
        if events:
            await start_stream(writer)
        for _ in range(events):
            await send(writer, event(request, "x"))
        await asyncio.sleep(60)

    return reply


def cut(events=0, tail=b""):
    """Drops the connection after `events` pieces of a stream and some bytes; 0: before anything."""

    async def reply(request, writer):
        if events:
            await start_stream(writer)
        for _ in range(events):
            await send(writer, event(request, "x"))
        if tail:
            await send(writer, tail)
        writer.transport.abort()

    return reply


def stream(*events, kind="text/event-stream"):
    """These events (bytes: as they are), then a clean end."""

    async def reply(request, writer):
        await start_stream(writer, kind)
        for one in events:
            await send(writer, one(request) if callable(one) else one)
        writer.write(b"0\r\n\r\n")

    return reply


class Server:
    """Answers with `behave(request)`, which returns a reply; see the functions above."""

    def __init__(self, behave):
        self.behave, self.requests, self.seen = behave, [], {}
        self.running = self.most_running = 0
        self.url = ""

    def texts(self):
        return [request.text for request in self.requests]

    async def serve(self, reader, writer):
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            request = await self.read(reader)
            # What asks whether a server is there, asks for its models.
            await (self.behave(request)(request, writer) if request else head(writer, 200))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.running -= 1
            with contextlib.suppress(ConnectionError):
                writer.close()

    async def read(self, reader):
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        if first.startswith("GET"):
            return None
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        request = Request(first.split()[1], headers, body)
        request.number = self.seen[request.text] = self.seen.get(request.text, -1) + 1
        self.requests.append(request)
        return request


@contextlib.contextmanager
def serving(behave, port=0):
    """Yields a `Server` that runs in a thread of its own."""
    server, loop, started = Server(behave), asyncio.new_event_loop(), threading.Event()

    async def main():
        listening = await asyncio.start_server(server.serve, "127.0.0.1", port)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        started.set()
        # Not `serve_forever`: since Python 3.12 its end waits for connections, and some of ours hang on purpose.
        with contextlib.suppress(asyncio.CancelledError):
            await loop.create_future()
        listening.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    task = loop.create_task(main())
    thread = threading.Thread(target=loop.run_until_complete, args=(task,), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)
        assert not thread.is_alive()
        loop.close()

"""A chat server for tests: a real HTTP server that ranks by the number in a text, and misbehaves on demand.

    with Stub(["busy", "drop"]) as stub:     # the first request is refused, the second cut off, the others answered
        Chat(ChatSettings(url=stub.url, model="stub"))(lists)

A behaviour is a name in `HANDLERS`, or a text, which the model then says; a function of the request's number and
body gives one for each request.
"""

import contextlib
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CANDIDATE = re.compile(r"^\[(\d+)\] ([a-z2-7]{8})\n(.*?)(?=^\[\d+\] \2\n|\n\nQuery: )", re.M | re.S)


def candidates_of(body):
    """Name -> text of the candidates of a request, as a model that heeds the mark reads them."""
    return {name: text.strip() for name, _, text in CANDIDATE.findall(body["messages"][0]["content"])}


def ranking_of(body):
    """The names of a request's candidates, the largest number first."""
    numbers = {n: float(m.group()) if (m := re.search(r"\d+", t)) else 0.0 for n, t in candidates_of(body).items()}
    return sorted(numbers, key=lambda name: -numbers[name])


def written(names):
    return " > ".join(f"[{name}]" for name in names)


class Stub:
    """The server; `url` is what settings take, `bodies` and `headers` hold every request in the order of arrival."""

    def __init__(self, behaviour=(), delay=0.0, usage=(100, 20)):
        self.behaviour, self.delay, self.usage = behaviour, delay, usage
        self.bodies, self.headers, self.paths, self.answered, self.times = [], [], [], [], []
        self.open = self.most_open = 0
        self.under_way, self.connections = set(), set()
        self.lock, self.release = threading.Lock(), threading.Event()

    def __enter__(self):
        self.start()
        return self

    def start(self, port=0):
        """Serve at a port of one's own, or at the one given."""
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                stub.serve(self)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass  # a client that was killed

        self.server = Server(("127.0.0.1", port), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __exit__(self, *_):
        self.release.set()
        self.stop()

    def stop(self):
        """Serve no more, and drop all connections."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):  # the other side may have left
                    connection.shutdown(socket.SHUT_RDWR)
            self.connections.clear()

    def serve(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(dict(handler.headers.items()))
            self.paths.append(handler.path)
            self.times.append(time.monotonic())
            self.open += 1
            self.under_way.add(handler)
            self.connections.add(handler.connection)
            self.most_open = max(self.open, self.most_open)
        try:
            time.sleep(self.delay)
            how = self.how(number, body)
            HANDLERS.get(how, lambda stub, handler, body: stub.say(handler, body, how))(self, handler, body)
        finally:
            self.done(handler)

    def done(self, handler):
        """The request is open no more; called before its response, after which the client may ask the next."""
        with self.lock:
            self.open -= handler in self.under_way
            self.under_way.discard(handler)

    def how(self, number, body):
        if callable(self.behaviour):
            return self.behaviour(number, body)
        return self.behaviour[number] if number < len(self.behaviour) else "well"

    def send(self, handler, status, payload, headers=()):
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.done(handler)
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def say(self, handler, body, text, finish="stop", **message):
        with self.lock:
            self.answered.append(body)
        answer = {"choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}]}
        if self.usage:
            answer["usage"] = {"prompt_tokens": self.usage[0], "completion_tokens": self.usage[1]}
        self.send(handler, 200, answer)

    def well(self, handler, body):
        self.say(handler, body, written(ranking_of(body)))

    def cut(self, handler, body):
        self.say(handler, body, written(ranking_of(body))[:-2], finish="length")

    def repeated(self, handler, body):
        names = ranking_of(body)
        self.say(handler, body, written([names[0], *names]))

    def outside(self, handler, body):
        self.say(handler, body, written(["0", str(len(candidates_of(body)) + 1), *ranking_of(body)]))

    def forgetful(self, handler, body):
        self.say(handler, body, written(ranking_of(body)[:2]))

    def reasoned(self, handler, body):
        self.say(handler, body, f"[1] is in the top 10. <answer>{written(ranking_of(body))}</answer>")

    def thought(self, handler, body):
        self.say(handler, body, written(ranking_of(body)), reasoning_content="the numbers decide")

    def parts(self, handler, body):
        self.say(handler, body, [{"type": "text", "text": part} for part in written(ranking_of(body)).partition(">")])

    def drop(self, handler, body):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True

    def slow(self, handler, body):
        self.release.wait(30)

    def trickle(self, handler, body):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        while not self.release.wait(0.05):
            handler.wfile.write(b" ")

    def status(self, handler, status, headers=()):
        key = handler.headers.get("authorization", "").removeprefix("Bearer ")
        self.send(handler, status, f"told to say {status} \x1b[31m {key}".encode(), headers)


HANDLERS = {
    **{
        name: getattr(Stub, name)
        for name in "well cut repeated outside forgetful reasoned thought parts drop slow trickle".split()
    },
    **{str(n): lambda stub, handler, body, n=n: stub.status(handler, n) for n in range(400, 600)},
    "busy": lambda stub, handler, body: stub.status(handler, 429, [("retry-after", "1")]),
    "redirect": lambda stub, handler, body: stub.status(handler, 307, [("location", f"{stub.url}/elsewhere")]),
    "echo": lambda stub, handler, body: stub.send(handler, 503, {"rejected": body}),
    "empty": lambda stub, handler, body: stub.say(handler, body, ""),
    "null": lambda stub, handler, body: stub.say(handler, body, None),
    "words": lambda stub, handler, body: stub.say(handler, body, "[three] > [one] > [two], of the top 10"),
    "not json": lambda stub, handler, body: stub.send(handler, 200, b"so {"),
    "page": lambda stub, handler, body: stub.send(handler, 200, b"<html>Welcome</html>"),
    "no choices": lambda stub, handler, body: stub.send(handler, 200, {"choices": []}),
    "nested": lambda stub, handler, body: stub.send(handler, 200, b"[" * 100_000),
}

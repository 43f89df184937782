"""A local server with the chat completions of an OpenAI-compatible endpoint; what it replies is scripted."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def verdict(score=10, reason="same", **more):
    """Content of a reply that is a verdict."""
    return json.dumps({"score": score, "reason": reason, **more})


def completion(content):
    """A reply of the endpoint."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


class FakeJudge:
    """`script(request)` gives (status, body) or "drip", which sends a byte now and then for ever, or "silent"."""

    def __init__(self, script):
        self.requests = []
        self.headers = []
        self.stopped = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802 - the name the standard library wants
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, request))
                outer.headers.append(dict(self.headers))
                reply = script(request)
                if isinstance(reply, str):
                    return outer.hold(self, drip=reply == "drip")
                status, body = reply
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def hold(self, handler, drip):
        """Keep the connection without ever completing the reply."""
        with contextlib.suppress(OSError):
            if drip:
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not self.stopped.is_set():
                time.sleep(0.05)
                if drip:
                    handler.wfile.write(b"a")
                    handler.wfile.flush()

    def close(self):
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

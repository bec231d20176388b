"""A small server of embeddings over exported programs; nothing but the standard library beside the loader.

    python serve_exported.py programs --port 8000

    curl localhost:8000/texts -d '{"texts": ["a cat", "一只猫"]}'
    curl localhost:8000/picture --data-binary @cat.png

Both answer {"embeddings": [[...], ...]}; `GET /` tells of the model. A mistake answers 400 and {"error": "a sentence"}.
It listens to this machine alone unless told otherwise by --host; put a proxy with TLS and limits before it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from load_exported import ExportedModel
from prepare_inputs import parse_json

MOST_BYTES = 32_000_000  # of a request
MOST_TEXTS = 1024


class Handler(BaseHTTPRequestHandler):
    """Answers requests; `model` is that of the server."""

    model: ExportedModel
    timeout = 60

    def do_GET(self) -> None:
        """Tells of the model."""
        if self.path != "/":
            self._answer(404, {"error": f"There is nothing at {self.path}: GET /, POST /texts or /picture."})
            return
        manifest = self.model.manifest
        told = ("model", "dtype", "normalized", "logit_scale", "axes")
        self._answer(200, {name: manifest[name] for name in told} | {"programs": list(manifest["programs"])})

    def do_POST(self) -> None:
        """Embeds texts or a picture."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True  # what the body holds is not read
            self._answer(413, {"error": f"A request has a Content-Length of at most {MOST_BYTES:,} bytes."})
            return
        body = self.rfile.read(int(length))
        try:
            rows = self._embeddings(body)
        except ValueError as error:
            self._answer(400, {"error": str(error)})
        else:
            if rows is None:
                self._answer(404, {"error": f"There is nothing at {self.path}: GET /, POST /texts or /picture."})
            else:
                self._answer(200, {"embeddings": rows})

    def _embeddings(self, body: bytes) -> list[list[float]] | None:
        if self.path == "/picture":
            return self.model.encode_pictures([body]).tolist()
        if self.path != "/texts":
            return None
        given = parse_json(body)
        texts = given.get("texts") if isinstance(given, dict) else None
        if not isinstance(texts, list) or not 1 <= len(texts) <= MOST_TEXTS:
            raise ValueError(f'Expected {{"texts": [...]}} with 1 to {MOST_TEXTS} strings.')
        return self.model.encode_texts(texts).tolist()

    def _answer(self, code: int, value: Any) -> None:
        data = json.dumps(value, ensure_ascii=False).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def make_server(model: ExportedModel, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """Returns a server that listens; `serve_forever` answers. Port 0 is any that is free."""
    return ThreadingHTTPServer((host, port), type("ModelHandler", (Handler,), {"model": model}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is interrupted, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Serve embeddings of exported programs.")
    parser.add_argument("folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--executables", action="store_true", help="run what was compiled for this machine")
    options = parser.parse_args(arguments)
    try:
        model = ExportedModel(options.folder, executables=options.executables)
        server = make_server(model, options.host, options.port)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"http://{options.host}:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

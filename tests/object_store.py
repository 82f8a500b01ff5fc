"""A real S3-compatible server (moto) that fails some requests on demand.

Run as a program it is the server; it prints its port. ``PUT /-/faults`` with a JSON object says which requests fail:

    methods  ["PUT", "GET"]
    every    N: every N-th request of these methods fails
    tries    how often in a row that request fails, since the AWS SDK retries by itself
"""

import http.client
import itertools
import json
import logging
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
BUCKET = "bucket"


class ObjectStore:
    """The server, as tests see it."""

    def __init__(self, port):
        self.port = port

    def uri(self, path="", bucket=BUCKET):
        return f"s3://{bucket}{path}?scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body=body)
        answer = connection.getresponse().read()
        connection.close()
        return answer

    def fail(self, every, methods=("PUT", "GET"), tries=1):
        """Set which requests fail from now on, and return how many have failed since the last call."""
        faults = json.dumps({"every": every, "methods": methods, "tries": tries})
        return json.loads(self.request("PUT", "/-/faults", faults))


@contextmanager
def object_store():
    """Yield a server with one empty bucket, which runs in another process."""
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        store = ObjectStore(int(process.stdout.readline()))
        store.request("PUT", f"/{BUCKET}")
        yield store
    finally:
        process.kill()
        process.wait()


class FaultyApplication:
    """A WSGI application that fails some requests and passes the others to another application."""

    def __init__(self, application):
        self.application = application
        self.faults = {"every": 0, "methods": [], "tries": 0}
        self.kinds = itertools.cycle([500, 503, "reset"])
        self.num_requests = self.num_failed = 0
        self.failing = {}
        self.lock = threading.Lock()

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == "/-/faults":
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            answer, self.num_failed, self.faults = self.num_failed, 0, json.loads(body)
            start_response("200 OK", [])
            return [json.dumps(answer).encode()]
        if not self.fails(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
            return self.application(environ, start_response)
        kind = next(self.kinds)
        if kind == "reset":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        start_response(f"{500 if kind == 'reset' else kind} Fault", [("Content-Type", "application/xml")])
        return [b"<Error><Code>InternalError</Code><Message>a fault</Message></Error>"]

    def fails(self, method, path):
        with self.lock:
            if method not in self.faults["methods"]:
                return False
            if (method, path) not in self.failing:
                self.num_requests += 1
                if self.num_requests % self.faults["every"]:
                    return False
                self.failing[method, path] = self.faults["tries"]
            self.failing[method, path] -= 1
            if not self.failing[method, path]:
                del self.failing[method, path]
            self.num_failed += 1
            return True


if __name__ == "__main__":
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server(
        "127.0.0.1", 0, FaultyApplication(DomainDispatcherApplication(create_backend_app)), threaded=True
    )
    print(server.server_port, flush=True)
    server.serve_forever()

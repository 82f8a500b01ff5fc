"""Runs submitted to a real cluster with token authentication: followed, detached, killed, resumed, finished once."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import requests

from tests.faulty_service import KEY, FaultyService, serving
from tests.processes import ROOT, finish, free_ports, kill_family, start_python, wait_until

TOKEN = "a-token-of-the-tests-0123456789abcdef"
DRIVERS_KEY = "only-the-driver-has-this-key-42"

pytestmark = pytest.mark.slow


class Cluster:
    def __init__(self, folder, environment):
        ports = free_ports(5)
        self.logs = folder
        self.gcs, self.dashboard = f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        self.environment = environment
        names = (
            "port",
            "dashboard-port",
            "dashboard-agent-listen-port",
            "ray-client-server-port",
            "metrics-export-port",
        )
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
        command += [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
        self.head = subprocess.Popen(
            [*command, "--node-ip-address=127.0.0.1", f"--temp-dir={folder}", "--disable-usage-stats"],
            env=environment | {"PERSPECTIVE_API_KEY": KEY}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def wait(self):
        """Wait until the dashboard answers; it takes jobs a few seconds later."""
        while True:
            assert self.head.poll() is None
            with contextlib.suppress(requests.RequestException):
                return self.get("/api/version")
            time.sleep(0.1)

    def stop(self):
        kill_family(self.head)

    def get(self, path):
        answer = requests.get(self.dashboard + path, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
        answer.raise_for_status()
        return answer.text

    def start(self, folder, *command, **environment):
        return start_python("-m", *command, cwd=folder, environment=self.environment | environment)

    def submit(self, folder, *arguments, **environment):
        return self.start(folder, "xgray.cli.main", "submit", *arguments, "--address", self.dashboard, **environment)


@pytest.fixture(scope="module")
def cluster():
    # A short path, because Ray creates sockets in it.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.write_text(TOKEN)
        environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "HF_TOKEN")}
        environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "NO_PROXY": "127.0.0.1",
        }
        cluster = Cluster(Path(folder) / "ray", environment)
        try:
            cluster.wait()
            yield cluster
        finally:
            cluster.stop()


class HeldService(FaultyService):
    """Answers the first ``number`` requests, and all others once ``may_go_on`` is set."""

    def __init__(self, number):
        super().__init__({})
        self.number = number
        self.may_go_on = threading.Event()

    async def analyze(self, request):
        while len(self.received) >= self.number and not self.may_go_on.is_set():
            await asyncio.sleep(0.05)
        return await super().analyze(request)


@pytest.fixture(scope="module")
def service():
    faulty = HeldService(8)
    with serving(faulty) as url:
        yield faulty, url


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_model, service):
    """The submitter's working directory, with an experiment file."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "e.yaml").write_text(
        f"name: mine\nruns: {folder / 'shared'}\nmodel: {{id: {tiny_model}, dtype: float32}}\n"
        "languages: [en, de]\nprompts: {limit: 6}\nvariants: []\n"
        "generate: {k: 2, max_new_tokens: 6, execution: {engine: dummy, batch_size: 1}}\n"
        f"score: {{scorer: perspective, perspective_url: '{service[1]}', execution: {{requests_per_second: 20}}}}\n"
        "evaluate: {resamples: 100, fluency: {kind: none}}\n"
    )
    return folder


def files(work, stage):
    return sorted((work / "shared" / "mine" / stage / "base" / "rows").glob("[!.]*.parquet"))


def drivers():
    """Return the jobs' driver processes, without the shells in which Ray starts them."""
    found = []
    for one in psutil.process_iter(["cmdline"]):
        line = one.info["cmdline"] or []
        if line[1:4] == ["-m", "xgray.cli.main", "run"] and "e.yaml" in line:
            found.append(one)
    return found


def test_a_run_submitted_again_is_followed_resumed_and_passed_over(cluster, work, service):
    first = cluster.submit(work, "e.yaml")
    wait_until(lambda: len(files(work, "score")) >= 3, first)

    second = cluster.submit(work, "e.yaml", OPENAI_API_KEY="stays-here")
    assert "generate/base" in "".join(iter_until(second.stdout, "score/base"))
    assert len(drivers()) == 1
    second.send_signal(signal.SIGINT)
    _, err = finish(second, 1)
    (job,) = re.findall(r"job (mine-\w{8}-1) is running on", err)
    assert f"ray job logs --follow {job}" in err
    assert "OPENAI_API_KEY: not sent" in err
    assert "Traceback" not in err

    (driver,) = drivers()
    driver.kill()
    _, err = finish(first, 1)
    assert "died (exit code" in err
    kept = {path: path.stat().st_mtime_ns for path in files(work, "generate") + files(work, "score")}
    assert len(files(work, "score")) < 12

    service[0].may_go_on.set()
    out, _ = finish(cluster.submit(work, "e.yaml"), 0)
    assert "12/12" in out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for stage in ("generate", "score"):
        ids = [row["prompt_id"] for path in files(work, stage) for row in pq.read_table(path).to_pylist()]
        assert len(ids) == len(set(ids)) == 12
    assert all(KEY in str(one.headers) + one.query for one in service[0].received)

    with without_tails(cluster.dashboard) as address:
        options = ("--score.perspective-url", "http://nowhere.invalid", "--address", address)
        out, err = finish(cluster.start(work, "xgray.cli.main", "submit", "e.yaml", *options), 2)
    assert out.count("of another configuration") == 1
    assert "xgray: job mine-" in err

    made = {path: path.stat().st_mtime_ns for path in (work / "shared" / "mine").rglob("*")}
    with_ray = cluster.start(
        ROOT, "ray.scripts.scripts", "job", "submit", "--working-dir=.", "--",
        "python", "-m", "jobs.run", str(work / "e.yaml"), RAY_API_SERVER_ADDRESS=cluster.dashboard,
    )  # fmt: skip
    out, _ = finish(with_ray, 0)
    assert "shared/mine/report/index.html" in out
    assert {path: path.stat().st_mtime_ns for path in (work / "shared" / "mine").rglob("*")} == made


@contextlib.contextmanager
def without_tails(dashboard):
    """Yield the address of a dashboard whose connections for following a log break at once."""

    class Passing(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.endswith("/logs/tail"):
                self.send_error(502)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            answer = requests.request(self.command, dashboard + self.path, headers=headers, data=body, timeout=60)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_PUT = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Passing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def iter_until(stream, text):
    for line in stream:
        yield line
        if text in line:
            return


ACTOR = """
import asyncio, json, sys
import ray
from xgray.config import Score
from xgray.distributed.cluster import connect
from xgray.distributed.rate_limit import shared_scorer

def work(section):
    async def score():
        scorer = shared_scorer(section)
        scored = await scorer.score(["a text"], "en")
        await scorer.close()
        return scored[0].error
    return asyncio.run(score())

section = Score.model_validate({"scorer": "perspective", "perspective_url": sys.argv[2]})
with connect(sys.argv[1]):
    print(ray.get(ray.remote(work).remote(section)), flush=True)
    sys.stdin.readline()
"""


def test_the_drivers_keys_reach_its_workers_and_can_be_read_nowhere(cluster, service):
    """The driver's key takes precedence over the nodes' key, and Ray's APIs and logs show neither."""
    faulty, url = service
    faulty.may_go_on.set()
    faulty.received.clear()
    job = {
        "runtime_env": {"env_vars": {"HF_HUB_OFFLINE": "1"}},
        "metadata": {},
    }  # as in a job, which sets this variable already
    environment = {
        "PERSPECTIVE_API_KEY": DRIVERS_KEY, "HF_TOKEN": DRIVERS_KEY, "HF_HUB_OFFLINE": "1", "XGRAY_CACHE": "/tmp/shown",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
    }  # fmt: skip
    variables = cluster.environment | environment
    process = start_python("-c", ACTOR, cluster.gcs, url, environment=variables, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "None\n", process.communicate()[1][-3000:]
    answers = {
        path: cluster.get(path)
        for path in (
            "/api/jobs/",
            "/logical/actors",
            "/nodes?view=summary",
            *(
                f"/api/v0/{kind}?detail=1&limit=10000"
                for kind in ("jobs", "actors", "tasks", "workers", "runtime_envs")
            ),
        )
    }
    process.communicate("\n", timeout=60)
    (received,) = faulty.received
    assert DRIVERS_KEY in str(received.headers) + received.query
    assert "HF_HUB_OFFLINE" in answers["/api/v0/runtime_envs?detail=1&limit=10000"]  # so a key would be found there
    assert "/tmp/shown" in answers["/api/v0/runtime_envs?detail=1&limit=10000"]
    assert "keys-" in answers["/logical/actors"]
    for text in answers.values():
        assert DRIVERS_KEY not in text
        assert KEY not in text
    logs = [path for path in cluster.logs.glob("session_*/logs/**/*") if path.is_file()]
    assert any("HF_HUB_OFFLINE" in path.read_text(errors="replace") for path in logs)
    for path in logs:
        text = path.read_text(errors="replace")
        assert DRIVERS_KEY not in text, path
        assert KEY not in text, path


@pytest.mark.parametrize("environment", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "another-token-0123456789"}])
def test_without_the_token_one_line_names_the_variables_to_set(cluster, work, environment):
    cluster.get("/api/version")
    _, err = finish(cluster.submit(work, "e.yaml", **environment), 2)
    assert len(err.strip().splitlines()) == 1, err
    assert "RAY_AUTH_MODE=token" in err
    assert "RAY_AUTH_TOKEN_PATH" in err
    assert TOKEN not in err


def test_a_driver_without_the_token_names_the_variables_to_set(cluster, tmp_path):
    code = "import sys; from xgray.distributed.cluster import connect; connect(sys.argv[1]).__enter__()"
    environment = cluster.environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "absent")}
    done = subprocess.run(
        [sys.executable, "-c", code, cluster.gcs],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "InputError: --address: RAY_AUTH_TOKEN_PATH is set but file cannot be opened" in done.stderr
    assert "RAY_AUTH_MODE=token" in done.stderr
    assert "ray get-auth-token" in done.stderr

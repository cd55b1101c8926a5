"""How open_clip's models are named, found and loaded: tags, files, folders, the hub's cache; no network."""

import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file

from dassl.clip import build_clip
from dassl.utils import UserError, sha256_file
from tests.fixtures.interpreter import python
from tests.fixtures.open_clip_models import MODELS, open_clip_folder  # noqa: F401  a fixture

WEIGHTS = "open_clip_model.safetensors"
SIGLIP_PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


@pytest.fixture(scope="module", autouse=True)
def no_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture
def known(tmp_path, monkeypatch):
    """`known(name, config, tags)`: an architecture and its published weights, as open_clip's own tables have them."""
    import open_clip

    def add(name, config, tags):
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"{name}.json")
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)

    return add


def test_ways_to_name_a_folder_give_the_same_clip(open_clip_folder):  # noqa: F811
    folder = str(open_clip_folder("clip"))
    names = [(f"open_clip:local-dir:{folder}", ""), (f"open_clip:{folder}", ""), ("open_clip", folder)]
    names.append(("open_clip:ViT-B-16-SigLIP2/webli", folder))  # PATH says where, as for OpenAI's
    assert len({build_clip(name, path=path).digest for name, path in names}) == 1


def test_a_file_of_a_known_model(open_clip_folder, known):  # noqa: F811
    known("Small-CLIP", MODELS["clip"], {})
    file = str(open_clip_folder("clip") / WEIGHTS)
    by_name = build_clip(f"open_clip:Small-CLIP/{file}")
    by_path = build_clip("open_clip:Small-CLIP", path=file)
    assert by_name.digest == by_path.digest == sha256_file(file)
    assert torch.equal(by_name.module.text_projection, load_file(file)["text_projection"])


def test_a_file_brings_the_pixels_of_its_architecture_and_the_tokeniser_beside_it(
    open_clip_folder,  # noqa: F811
    known,
    tmp_path,
    capsys,
):
    """A file does not say how images were prepared: open_clip alone would take CLIP's mean for SigLIP."""
    folder = open_clip_folder("siglip2")
    config = MODELS["siglip2"]
    config = config | {"text_cfg": config["text_cfg"] | {"hf_tokenizer_name": "nobody/nothing"}}
    known("Small-SigLIP2", config, {"webli": {"hf_hub": "nobody/nothing/", **SIGLIP_PIXELS}})
    backbone = build_clip(f"open_clip:Small-SigLIP2/{folder / WEIGHTS}")
    assert backbone.preprocess == build_clip(f"open_clip:{folder}").preprocess
    assert backbone.preprocess.resize == "squash" and backbone.token_counts(["A photo of a cat."]) == [5]
    capsys.readouterr()
    other = {"other": {"file": "", "mean": (0.1,) * 3}}
    known("Small-CLIP2", MODELS["clip"], {"one": {"file": "", **SIGLIP_PIXELS}} | other)
    build_clip(f"open_clip:Small-CLIP2/{open_clip_folder('clip') / WEIGHTS}")
    assert "Small-CLIP2: its published weights differ in preprocessing; that of one is" in capsys.readouterr().out
    shutil.copy(folder / WEIGHTS, tmp_path)
    with pytest.raises(UserError, match="cache: nobody/nothing/tokenizer.json. Run `hf download` of nobody/nothing"):
        build_clip(f"open_clip:Small-SigLIP2/{tmp_path / WEIGHTS}")


def test_quick_gelu_follows_the_weights(open_clip_folder, known):  # noqa: F811
    file = str(open_clip_folder("clip") / WEIGHTS)
    tags = {"plain": {"file": file}, "quick": {"file": file, "quick_gelu": True}}
    known("Gelu-CLIP", MODELS["clip"], tags)
    built = {tag: build_clip(f"open_clip:Gelu-CLIP/{tag}") for tag in tags}
    assert [built[tag].activation for tag in tags] == ["gelu", "quickgelu"]
    image = torch.randn(1, 3, 32, 32)
    assert not torch.equal(*(model.encode_image(image) for model in built.values()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-61/laion2b_s34b_b88k", 'unknown open_clip model "ViT-B-61" .nearest: ViT-B-16'),
        ("open_clip:ViT-B-16", "names no weights; write open_clip:ViT-B-16/TAG, available: openai, "),
        ("open_clip:ViT-B-16/laion2b_s34b", "nearest: laion2b_s34b_b88k"),
        ("open_clip:ViT-B-16//nowhere/w.pt", '"/nowhere/w.pt" for open_clip:ViT-B-16 are not there'),
        ("open_clip:hf-hub:nobody/nothing", "cache: nobody/nothing/open_clip_config.json, nobody/nothing/open_clip_mo"),
        ("open_clip:ViT-B-16-SigLIP2/webli", "cache: timm/ViT-B-16-SigLIP2/open_clip_model.safetensors, timm/ViT-B-16"),
        ("open_clip:configs", '"configs" has no open_clip_config.json; a folder is read in the layout of'),
    ],
)
def test_what_cannot_be_had_is_named(name, message):
    with pytest.raises(UserError, match=message):
        build_clip(name)


def test_a_damaged_folder_is_named(open_clip_folder, tmp_path):  # noqa: F811
    shutil.copytree(open_clip_folder("clip"), tmp_path, dirs_exist_ok=True)
    weights = tmp_path / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f'open_clip cannot load "{tmp_path}"'):
        build_clip(f"open_clip:{tmp_path}")
    save_file({"ctx": torch.zeros(4)}, weights)
    with pytest.raises(UserError, match=f'open_clip cannot load "{tmp_path}"'):
        build_clip(f"open_clip:{tmp_path}")
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="is no checkpoint but a Git LFS pointer"):
        build_clip(f"open_clip:{tmp_path}")
    weights.unlink()
    with pytest.raises(UserError, match="could not be loaded"):
        build_clip(f"open_clip:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match=f'open_clip cannot load "{tmp_path}"'):
        build_clip(f"open_clip:{tmp_path}")


def write_cache(home, repo, folder):
    """The hub's cache with one repository, as a download leaves it; its snapshot folder."""
    base = home / "hub" / f"models--{repo.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text("0" * 40)
    return shutil.copytree(folder, base / "snapshots" / ("0" * 40))


@pytest.fixture
def hub():
    """A hub that has nothing; `asked` lists what was asked of it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


LOAD = """
import json, os, pathlib, sys
import open_clip
from dassl.clip import build_clip
from huggingface_hub import constants
config = json.loads(pathlib.Path(sys.argv[1], "open_clip_config.json").read_text())
pathlib.Path(sys.argv[2]).write_text(json.dumps(config["model_cfg"]))
open_clip.add_model_config(sys.argv[2])
pixels = config["preprocess_cfg"]
open_clip.pretrained._PRETRAINED["Small-SigLIP2"] = {"webli": {"hf_hub": "someone/small/", **pixels}}
for name in ("hf-hub:someone/small", "Small-SigLIP2/webli"):
    backbone = build_clip(f"open_clip:{name}")
    print("loaded", backbone.digest, backbone.preprocess.resize, backbone.token_counts(["A cat!"]))
print("after", os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE)
pathlib.Path(sys.argv[1], "open_clip_model.safetensors").unlink()
try:
    build_clip("open_clip:hf-hub:someone/small")
except Exception as error:
    print("refused", error)
"""


def test_what_is_in_the_cache_is_read_without_asking_the_hub(open_clip_folder, hub, tmp_path, monkeypatch):  # noqa: F811
    address, asked = hub
    snapshot = write_cache(tmp_path, "someone/small", open_clip_folder("siglip2"))
    config = json.loads((snapshot / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/small"
    (snapshot / "open_clip_config.json").write_text(json.dumps(config))
    digest = sha256_file(snapshot / WEIGHTS)
    for key in [key for key in os.environ if key.startswith(("HF_", "TRANSFORMERS_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", address)
    done = python(LOAD, snapshot, tmp_path / "Small-SigLIP2.json")  # where nothing has imported the hub's client yet
    lines = [line for line in done.stdout.splitlines() if line.startswith(("loaded", "after", "refused"))]
    assert lines[:3] == [f"loaded {digest} squash [2]"] * 2 + ["after None False"], done.stdout + done.stderr
    assert "Not in the Hugging Face cache: someone/small/open_clip_model.safetensors" in lines[3]
    assert set(asked) > {"/"} and all("open_clip" in path for path in asked if path != "/")  # weights gone, no sooner


def test_a_hub_that_cannot_be_reached_is_said_at_once(monkeypatch):
    """huggingface_hub alone tries each file six times, 45 seconds in all."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="127.0.0.1:9 cannot be reached: .*refused.*MODEL.BACKBONE.PATH"):
        build_clip("open_clip:ViT-B-16-SigLIP2/webli")


def test_without_open_clip_the_error_says_what_to_install(tmp_path):
    (tmp_path / "open_clip.py").write_text("raise ModuleNotFoundError(\"No module named 'open_clip'\")\n")
    code = "import sys; sys.path.insert(0, sys.argv[1])\n"
    code += "from dassl.clip import build_clip; build_clip('open_clip:ViT-B-16/openai')"
    done = python(code, tmp_path)
    assert "UserError: open_clip is not installed" in done.stderr
    assert "pip install open_clip_torch" in done.stderr

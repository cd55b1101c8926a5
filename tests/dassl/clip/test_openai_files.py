"""OpenAI's weights: the files in which they come, where they are looked for, and what is refused."""

import hashlib
import os
import pickle
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dassl.clip import build_clip, openai
from dassl.utils import UserError, sha256_file
from tests.fixtures.clip_files import cast, random_module, write_archive, write_file
from tests.fixtures.interpreter import python
from tests.fixtures.rounding import tower_rounding

TEXTS = ["a photo of a cat", "a red star"]


def features(module, side):
    """Image and text features of a module, in fp32."""
    tokens = openai.clip_package().tokenize(TEXTS)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return module.encode_image(images), module.encode_text(tokens)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("stored", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("layout", ["archive", "state_dict", "nested", "safetensors"])
def test_a_file_gives_back_its_model(tmp_path, kind, stored, layout):
    if stored == "bf16" and layout == "archive":
        layout = "safetensors"  # no archive was ever published in bf16
    module = cast(random_module(kind), stored)
    side = module.visual.input_resolution
    file = write_file(module, tmp_path / ("w.safetensors" if layout == "safetensors" else "w.pt"), layout)
    backbone = build_clip(str(file))
    expected = features(module.float(), side)
    assert backbone.dtype == torch.float32 and backbone.digest == sha256_file(file)
    assert (backbone.dim, backbone.width, backbone.context_length, backbone.image_size) == (32, 64, 77, side)
    for ours, theirs in zip(features(backbone.module, side), expected, strict=True):
        assert torch.equal(ours, theirs)  # an fp32 file is not rounded, a half file loses nothing more


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated")
def test_the_packages_own_loader_would_round_an_fp32_file(tmp_path):
    module = random_module()
    file = write_file(module, tmp_path / "w.pt", "state_dict")
    rounded, _ = openai.clip_package().load(str(file), device="cpu")
    expected, ours = features(module, 32), features(build_clip(str(file)).module, 32)
    worst = max((a - b).abs().max() for a, b in zip(features(rounded, 32), expected, strict=True))
    assert worst > 1e-5
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_half_precision_is_the_packages(tmp_path, kind):
    module = random_module(kind)
    file = write_file(module, tmp_path / "w.pt", "state_dict")
    backbone = build_clip(str(file), precision="fp16")
    assert backbone.dtype == torch.float16
    expected = cast(module, "fp16").state_dict()
    for name, value in backbone.module.state_dict().items():
        assert torch.equal(value, expected[name]) and value.dtype == expected[name].dtype
    tokens = backbone.tokenize(TEXTS)
    assert backbone.encode_text(tokens).dtype == torch.float16
    assert torch.equal(
        backbone.encode_text_from_embeddings(backbone.embed(tokens), tokens), backbone.encode_text(tokens)
    )
    for mode in ("amp", "bf16"):
        assert build_clip(str(file), precision=mode).dtype == torch.float32  # the rest is autocast's


def test_data_parallel_names_are_understood(tmp_path):
    module = random_module()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in module.state_dict().items()}}, tmp_path / "w.pt"
    )
    assert torch.equal(build_clip(str(tmp_path / "w.pt")).module.text_projection, module.text_projection)


def test_loading_draws_no_random_number(tmp_path):
    file = write_file(random_module(), tmp_path / "w.pt", "state_dict")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_clip(str(file))
    assert torch.equal(torch.rand(3), expected)


# towers that take only as many tokens as they have positions, as in OpenAI's own package


def strict(module):
    """The module with the whole positions and the whole mask in every call."""
    import clip.model

    class StrictBlock(clip.model.ResidualAttentionBlock):
        def attention(self, x):
            return self.attn(x, x, x, need_weights=False, attn_mask=self.attn_mask)[0]

    class StrictCLIP(clip.model.CLIP):
        def encode_text(self, text):
            x = self.token_embedding(text) + self.positional_embedding  # fails unless text has every position
            x = self.ln_final(self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))
            return x[torch.arange(len(x)), text.argmax(-1)] @ self.text_projection

    module.__class__ = StrictCLIP
    for block in module.transformer.resblocks:
        block.__class__ = StrictBlock
    return module


def test_a_strict_tower_is_lent_short_positions(tmp_path):
    file = write_file(random_module(), tmp_path / "w.pt", "state_dict")
    lenient, lent = build_clip(str(file)), build_clip(str(file))
    strict(lent.module)
    tokens = lent.tokenize(TEXTS)
    with pytest.raises(RuntimeError):
        lent.module.encode_text(lent.shorten(tokens))
    masks = [block.module.attn_mask for block in lent.text_blocks]
    assert torch.equal(lent.encode_text(tokens), lenient.encode_text(tokens))
    embeddings = lent.embed(tokens)
    assert torch.equal(
        lent.encode_text_from_embeddings(embeddings, tokens), lenient.encode_text_from_embeddings(embeddings, tokens)
    )
    assert [block.module.attn_mask for block in lent.text_blocks] == masks
    full = lent.module.encode_text(tokens)  # whole again
    assert (full - lent.encode_text(tokens)).abs().max() <= tower_rounding(full, len(lent.text_blocks))


# names, places, hashes


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Two small archives with different weights."""
    folder = tmp_path_factory.mktemp("archives")
    return [write_archive(random_module(seed=seed), folder / f"{seed}.pt") for seed in (0, 1)]


@pytest.fixture
def published(archives, tmp_path, monkeypatch):
    """A known name whose address and hash lead to a small archive on a local server."""
    file = archives[0]
    served = {"data": file.read_bytes(), "asked": 0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served["asked"] += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(served["data"])))
            self.end_headers()
            self.wfile.write(served["data"])

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/{sha256_file(file)}/ViT-B-16.pt"
    monkeypatch.setitem(openai.weights_table(), "ViT-B/16", address)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache = tmp_path / "home" / ".cache" / "clip" / "ViT-B-16.pt"
    served.update(file=file, cache=cache, stop=server.shutdown)
    yield served
    server.shutdown()
    server.server_close()


def test_every_model_that_openai_published_has_a_name():
    resnets, vits = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"], ["ViT-B/32", "ViT-B/16", "ViT-L/14"]
    assert sorted(openai.weights_table()) == sorted([*resnets, *vits, "ViT-L/14@336px"])


def test_the_address_carries_the_hash():
    for name, address in openai.weights_table().items():
        folder, file = address.split("/")[-2:]
        assert len(folder) == hashlib.sha256().digest_size * 2 and file.startswith(name.replace("/", "-")[:4])


def test_a_name_is_looked_up_in_path_then_cache_then_downloaded_once(published, tmp_path, capsys):
    file = published["file"]
    given = tmp_path / "given"
    given.mkdir()
    (given / "ViT-B-16.pt").write_bytes(file.read_bytes())
    backbone = build_clip("ViT-B/16", path=str(given))
    assert backbone.digest == sha256_file(file) and backbone.name == "ViT-B/16" and published["asked"] == 0
    line = capsys.readouterr().out.splitlines()[0]
    places = [str(given / "ViT-B-16.pt"), str(published["cache"]), "http://127.0.0.1"]
    assert [line.index(place) for place in places] == sorted(line.index(place) for place in places)

    assert not published["cache"].exists()
    build_clip("ViT-B/16")
    assert published["asked"] == 1 and published["cache"].read_bytes() == file.read_bytes()
    build_clip("ViT-B/16")
    build_clip("ViT-B/16", path=str(tmp_path / "home"))  # a folder without it: on to the cache
    assert published["asked"] == 1


def test_a_file_under_a_known_name_must_have_its_hash(published, archives):
    other = published["cache"]
    other.parent.mkdir(parents=True)
    other.write_bytes(archives[1].read_bytes())
    with pytest.raises(UserError, match=f"ViT-B/16: sha256 {sha256_file(other)}, expected "):
        build_clip("ViT-B/16")
    with pytest.raises(UserError, match="sha256"):
        build_clip("ViT-B/16", path=str(other.parent))
    assert build_clip("ViT-B/16", path=str(other)).digest == sha256_file(other)  # named by the user: as it is
    assert published["asked"] == 0


def test_a_bad_download_leaves_nothing(published):
    published["data"] = published["data"][:-100]
    with pytest.raises(UserError, match="(?i)cannot download .*Put the file at .*ViT-B-16.pt, or name it"):
        build_clip("ViT-B/16")
    published["stop"]()
    assert not any(published["cache"].parent.iterdir())


def test_no_network_says_where_to_put_the_file(published, monkeypatch):
    monkeypatch.setitem(openai.weights_table(), "ViT-B/16", "http://127.0.0.1:9/" + "0" * 64 + "/ViT-B-16.pt")
    with pytest.raises(UserError, match="(?i)cannot download .*refused.*Put the file at "):
        build_clip("ViT-B/16")


def test_a_missing_path_is_no_reason_to_download(published, tmp_path):
    with pytest.raises(UserError, match="nowhere.pt.* is not there"):
        build_clip("ViT-B/16", path=str(tmp_path / "nowhere.pt"))
    with pytest.raises(FileNotFoundError):
        build_clip("ViT-B/16", path=str(tmp_path / "nowhere.pt"))
    with pytest.raises(UserError, match='unknown CLIP "ViT-B-16" .nearest: ViT-B/16'):
        build_clip("ViT-B-16", path=str(tmp_path))
    assert published["asked"] == 0


def test_another_model_under_a_known_name_is_pointed_out(tmp_path, capsys):
    vit = write_file(random_module("vit"), tmp_path / "vit.pt", "state_dict")
    resnet = write_file(random_module("resnet"), tmp_path / "resnet.pt", "state_dict")
    build_clip("ViT-B/16", path=str(vit))
    warning = f'MODEL.BACKBONE.NAME is ViT-B/16, but "{vit}" holds a ViT with patches of 8'
    assert warning in capsys.readouterr().out
    build_clip("ViT-B/16", path=str(resnet))
    assert "holds a ResNet" in capsys.readouterr().out
    build_clip("RN50", path=str(resnet))
    build_clip("mine", path=str(vit))
    assert "BACKBONE.NAME" not in capsys.readouterr().out


# damaged and hostile files


@pytest.mark.parametrize("layout", ["archive", "state_dict", "safetensors"])
def test_a_truncated_file_is_named(tmp_path, layout):
    name = "w.safetensors" if layout == "safetensors" else "w.pt"
    file = write_file(random_module(), tmp_path / name, layout)
    data = file.read_bytes()
    for keep in (0.0, 0.4, 0.99):
        file.write_bytes(data[: int(len(data) * keep)])
        with pytest.raises(UserError, match=f'(cannot read weights from )?"{file}"'):
            build_clip(str(file))


class Hostile:
    """Pickles to a call of os.mkdir."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", [torch.save, lambda obj, path: Path(path).write_bytes(pickle.dumps(obj))])
def test_a_hostile_file_runs_nothing(tmp_path, writer):
    file = tmp_path / "w.pt"
    writer({"state_dict": Hostile(tmp_path / "owned")}, file)
    with pytest.raises(UserError, match=f'"{file}".*(is refused: it asks for .*mkdir|is damaged)'):
        build_clip(str(file))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("change", ["missing", "shape", "other", "list"])
def test_a_file_without_a_clip_is_named(tmp_path, change):
    state = random_module().state_dict()
    if change == "missing":
        del state["text_projection"]
    elif change == "shape":
        state["transformer.resblocks.1.ln_1.weight"] = torch.ones(7)
    elif change == "other":
        state = torch.nn.Linear(2, 2).state_dict()
    torch.save([1, 2] if change == "list" else state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=f'"{tmp_path / "w.pt"}" holds '):
        build_clip(str(tmp_path / "w.pt"))


def test_a_prompt_checkpoint_in_safetensors_is_no_clip(tmp_path):
    save_file({"ctx": torch.zeros(4, 64)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="holds no CLIP in OpenAI's layout"):
        build_clip(str(tmp_path / "w.safetensors"))


# the package


def load_with(folder, code="from dassl.clip import build_clip; build_clip('RN50')"):
    """Last line of the error of a process that finds modules in `folder` first."""
    done = python(f"import sys; sys.path.insert(0, sys.argv[1]); {code}", folder)
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def test_the_clipboard_manager_is_refused_by_name(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "__init__.py").write_text("__version__ = '0.2.0'\n")
    error = load_with(tmp_path)
    assert "UserError" in error and str(tmp_path / "clip" / "__init__.py") in error
    assert "clipboard manager" in error and "pip install clip-anytorch" in error


def test_a_missing_package_says_what_to_install(tmp_path):
    (tmp_path / "clip.py").write_text("raise ModuleNotFoundError(\"No module named 'clip'\")\n")
    error = load_with(tmp_path)
    assert "not installed" in error and "pip install clip-anytorch" in error
    (tmp_path / "clip.py").write_text("import pkg_resources_that_is_gone\n")
    assert 'pip install "setuptools<81"' in load_with(tmp_path)

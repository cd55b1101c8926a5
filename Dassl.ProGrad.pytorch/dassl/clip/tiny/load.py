"""The built-in CLIP: the shipped weights behind the one interface, and random ones for tests."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from dassl.clip.backbone import CLIP_REGISTRY, ClipBackbone, Device, Preprocess, tensor_digest
from dassl.clip.tiny.model import MEAN, STD, TinyCLIP
from dassl.clip.tiny.tokenizer import PAD, tokenizer
from dassl.utils import UserError, sha256_file

WEIGHTS = Path(__file__).parent / "tiny_clip.safetensors"


class TinyBackbone(ClipBackbone):
    """A `TinyCLIP`. Its blocks see (N, L, W)."""

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = torch.full((len(texts), self.context_length), PAD)
        for row, text in zip(tokens, texts, strict=True):
            ids = tokenizer().encode(text)
            if len(ids) > self.context_length:
                raise UserError(f'the text "{text}" has {len(ids)} tokens, {self.name} takes {self.context_length}')
            row[: len(ids)] = torch.tensor(ids)
        return tokens.to(self.device)


def _backbone(module, name, digest, device, precision):
    module = module.half() if precision == "fp16" else module.float()
    preprocess = Preprocess(module.visual.input_resolution, MEAN, STD)
    return TinyBackbone(module.to(device), name=name, digest=digest, preprocess=preprocess, activation="gelu")


def load_tiny(device: Device = "cpu", precision: str = "fp32") -> TinyBackbone:
    """The CLIP with the shipped weights -> TinyBackbone. Draws no random number.

    precision: "fp16" keeps the weights in half, every other mode computes in fp32.
    """
    digest = sha256_file(WEIGHTS)
    with torch.device("meta"):
        module = TinyCLIP(tokenizer().size)
    module.load_state_dict(load_file(WEIGHTS), assign=True)
    return _backbone(module, "tiny", digest, device, precision).freeze()


@CLIP_REGISTRY.register()
def tiny(model: str, *, path: str, device: Device, precision: str) -> TinyBackbone:
    if model or path:
        raise UserError(f'the CLIP "tiny" is built in and takes no model or file, got "{model or path}"')
    return load_tiny(device, precision)


def random_tiny(seed: int = 0, **dims: int) -> TinyBackbone:
    """A CLIP with random weights of `seed`, not frozen, for tests; `dims` are those of TinyCLIP.

    The global random stream stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = TinyCLIP(tokenizer().size, **dims).eval()
    return _backbone(module, "tiny-random", tensor_digest(module.state_dict()), "cpu", "fp32")

"""Train the tiny CLIP from scratch on captioned toy images.

    python Dassl.ProGrad.pytorch/tools/make_tiny_clip/training.py

Symmetric contrastive loss, bf16 autocast, one thread. Every batch is a function of (seed, step). Weights and log go to
dassl/clip/tiny.
"""

import argparse
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ENGINE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ENGINE.parent), str(ENGINE)]

if __name__ == "__main__":  # --help trains nothing, and needs no PyTorch
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from dassl.clip.tiny.load import WEIGHTS  # noqa: E402
from dassl.clip.tiny.model import LOGIT_SCALE_MAX, MEAN, STD, TinyCLIP  # noqa: E402
from dassl.clip.tiny.tokenizer import PAD, tokenizer  # noqa: E402
from dassl.utils import get_logger, write_json  # noqa: E402
from tools.make_tiny_clip.images import example  # noqa: E402

LOG = WEIGHTS.parent / "train_log.json"
SHOW = 20  # steps between lines of the log
PLAN = SimpleNamespace(  # what decides the weights
    seed=1,
    steps=4000,
    batch=256,
    chunks=32,  # of images, each of which gives chunk / batch steps
    chunk=5120,
    lr=1e-3,
    warmup=200,
    weight_decay=0.1,
    spell=0.08,  # share of known words that are spelled, so that letters come to mean something
    shift=1,  # pixels an image is moved at most
)


def to_pixels(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), normalised."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def to_tokens(captions: list[str], spell=None) -> Tensor:
    """Captions -> (B, L) int64, L the longest of them. spell: as of Tokenizer.encode."""
    rows = [torch.tensor(tokenizer().encode(caption, spell)) for caption in captions]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def batch(step: int) -> tuple[Tensor, Tensor, list[str]]:
    """(pixels, tokens, captions) of a step: chunk by chunk, shuffled inside."""
    turn, place = divmod(step, PLAN.chunk // PLAN.batch)
    order = np.random.default_rng([PLAN.seed, 1, turn]).permutation(PLAN.chunk)
    chosen = order[place * PLAN.batch : (place + 1) * PLAN.batch].tolist()
    examples = [example(PLAN.seed, turn % PLAN.chunks * PLAN.chunk + i) for i in chosen]
    rng = np.random.default_rng([PLAN.seed, 2, step])
    words = [captions[rng.integers(len(captions))] for _, captions in examples]
    pixels = augment(to_pixels(np.stack([image for image, _ in examples])), rng)
    return pixels, to_tokens(words, lambda word: rng.random() < PLAN.spell), [text.rstrip(".") for text in words]


def augment(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """(B, 3, H, W): moved by up to PLAN.shift pixels, contrast and brightness changed a little."""
    size, batch = pixels.shape[-1], len(pixels)
    padded = F.pad(pixels, (PLAN.shift,) * 4, mode="replicate")
    moves = rng.integers(0, 2 * PLAN.shift + 1, (batch, 2)).tolist()
    pixels = torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(padded, moves, strict=True)])
    gain, bias = rng.uniform(0.85, 1.1, (batch, 1, 1, 1)), rng.uniform(-0.2, 0.2, (batch, 1, 1, 1))
    return pixels * torch.from_numpy(gain).float() + torch.from_numpy(bias).float()


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
    """(B, D), (B, D), scalar, B strings -> (loss, share of images whose nearest caption is right).

    Equal captions share the target, so none of them is taken for a negative.
    """
    group = torch.tensor([captions.index(text) for text in captions])
    target = (group[:, None] == group).float()
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).t()
    hit = target[torch.arange(len(group)), logits.argmax(1)].mean()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2, hit


def build() -> tuple[TinyCLIP, torch.optim.AdamW]:
    """(model, AdamW). Norms, biases, the scale and embeddings are not decayed."""
    torch.manual_seed(PLAN.seed)
    model = TinyCLIP(tokenizer().size)
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
    groups = [
        {"params": [p for p in model.parameters() if (id(p) in decayed) == flag], "weight_decay": decay}
        for flag, decay in ((True, PLAN.weight_decay), (False, 0.0))
    ]
    return model, torch.optim.AdamW(groups, lr=PLAN.lr, betas=(0.9, 0.98), eps=1e-6)


def learning_rate(step: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < PLAN.warmup:
        return PLAN.lr * (step + 1) / PLAN.warmup
    return PLAN.lr * (1 + math.cos(math.pi * (step - PLAN.warmup) / (PLAN.steps - PLAN.warmup))) / 2


def encode_by_length(model: TinyCLIP, tokens: Tensor) -> Tensor:
    """(B, L) -> (B, D): text features, in four groups of similar length, so that short texts cost little."""
    lengths = tokens.argmax(1) + 1
    order = lengths.argsort(stable=True)
    parts = [model.encode_text(tokens[part, : lengths[part].max()]) for part in order.chunk(4)]
    return torch.cat(parts)[order.argsort()]


def train_step(model: TinyCLIP, optimizer: torch.optim.Optimizer, step: int) -> tuple[float, float]:
    """One update -> (loss, hit)."""
    pixels, tokens, captions = batch(step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step)
    with torch.autocast("cpu", torch.bfloat16):
        image, text = model.encode_image(pixels), encode_by_length(model, tokens)
    loss, hit = contrastive_loss(image.float(), text.float(), model.logit_scale.exp(), captions)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=LOGIT_SCALE_MAX)
    return loss.item(), hit.item()


def train(stop: int = PLAN.steps) -> tuple[TinyCLIP, dict]:
    """Train `stop` steps -> (model, log).

    log["steps"]: [step, loss, hit] of the first SHOW steps, then means over each SHOW.
    """
    model, optimizer = build()
    log, recent, started = {"plan": vars(PLAN), "torch": str(torch.__version__), "steps": []}, [], time.perf_counter()
    for done in range(1, stop + 1):
        recent.append(train_step(model, optimizer, done - 1))
        if done <= SHOW or done % SHOW == 0:
            log["steps"].append([done, *np.mean(recent, 0).round(4).tolist()])
            log["wall_s"] = round(time.perf_counter() - started, 1)
            get_logger().info(f"[step, loss, hit] {log['steps'][-1]} {log['wall_s']:.0f} s")
            recent = []
    return model, log


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, log = train()
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, WEIGHTS, {"step": str(PLAN.steps)})
    write_json(log, LOG)

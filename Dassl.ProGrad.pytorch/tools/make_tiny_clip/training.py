"""Train the tiny CLIP from scratch on captioned toy images.

    python Dassl.ProGrad.pytorch/tools/make_tiny_clip/training.py [--threads 1]

Symmetric contrastive loss, bf16 autocast. Every batch is a function of (seed, step). Weights and log go to
dassl/clip/tiny.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ENGINE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ENGINE.parent), str(ENGINE)]


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", type=Path, default=ENGINE / "dassl/clip/tiny", help="folder for weights and log")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4000)
    return parser


if __name__ == "__main__":  # --help needs no PyTorch
    build_parser().parse_args()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from dassl.clip.tiny.load import WEIGHTS  # noqa: E402
from dassl.clip.tiny.model import LOGIT_SCALE_MAX, MEAN, STD, TinyCLIP  # noqa: E402
from dassl.clip.tiny.tokenizer import PAD, tokenizer  # noqa: E402
from dassl.utils import atomic_write, get_logger  # noqa: E402
from tools.make_tiny_clip.images import example  # noqa: E402

LOG = "train_log.json"
SHOW = 20  # steps between lines of the log


@dataclass(frozen=True)
class Plan:
    """What decides the weights. The images come in chunks, each of which gives chunk / batch steps."""

    seed: int = 1
    steps: int = 4000
    batch: int = 256
    chunks: int = 32
    chunk: int = 5120
    lr: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.1
    spell: float = 0.08  # share of known words that are spelled, so that letters come to mean something
    shift: int = 1  # pixels an image is moved at most


def to_pixels(images):
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), normalised."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def to_tokens(captions, rng=None, spell=0.0):
    """Captions -> (B, L) int64, L the longest of them."""
    chance = (lambda word: rng.random() < spell) if spell else None
    rows = [tokenizer().encode(caption, chance) for caption in captions]
    tokens = torch.full((len(rows), max(map(len, rows))), PAD)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return tokens


def batch(plan, step):
    """(pixels, tokens, captions) of a step: chunk by chunk, shuffled inside."""
    turn, place = divmod(step, plan.chunk // plan.batch)
    order = np.random.default_rng([plan.seed, 1, turn]).permutation(plan.chunk)
    chosen = order[place * plan.batch : (place + 1) * plan.batch].tolist()
    examples = [example(plan.seed, turn % plan.chunks * plan.chunk + i) for i in chosen]
    rng = np.random.default_rng([plan.seed, 2, step])
    words = [captions[rng.integers(len(captions))] for _, captions in examples]
    pixels = augment(to_pixels(np.stack([image for image, _ in examples])), rng, plan.shift)
    return pixels, to_tokens(words, rng, plan.spell), [text.rstrip(".") for text in words]


def augment(pixels, rng, shift):
    """(B, 3, H, W): moved by up to `shift` pixels, contrast and brightness changed a little."""
    size, batch = pixels.shape[-1], len(pixels)
    padded = F.pad(pixels, (shift,) * 4, mode="replicate")
    moves = rng.integers(0, 2 * shift + 1, (batch, 2))
    pixels = torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(padded, moves.tolist(), strict=True)])
    gain, bias = rng.uniform(0.85, 1.1, (batch, 1, 1, 1)), rng.uniform(-0.2, 0.2, (batch, 1, 1, 1))
    return pixels * torch.from_numpy(gain).float() + torch.from_numpy(bias).float()


def contrastive_loss(image, text, scale, captions):
    """(B, D), (B, D), scalar, B strings -> (loss, share of images whose nearest caption is right).

    Equal captions share the target, so none of them is taken for a negative.
    """
    numbers = {text: i for i, text in enumerate(captions)}
    group = torch.tensor([numbers[text] for text in captions])
    target = (group[:, None] == group).float()
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).t()
    hit = target[torch.arange(len(group)), logits.argmax(1)].mean()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2, hit


def build(plan):
    """(model, AdamW). Norms, biases, the scale and embeddings are not decayed."""
    torch.manual_seed(plan.seed)
    model = TinyCLIP(tokenizer().size)
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
    groups = [[p for p in model.parameters() if (id(p) in decayed) == flag] for flag in (True, False)]
    options = [{"params": groups[0], "weight_decay": plan.weight_decay}, {"params": groups[1], "weight_decay": 0.0}]
    return model, torch.optim.AdamW(options, lr=plan.lr, betas=(0.9, 0.98), eps=1e-6)


def learning_rate(plan, step):
    """Linear warm-up, then half a cosine to zero."""
    if step < plan.warmup:
        return plan.lr * (step + 1) / plan.warmup
    return plan.lr * (1 + math.cos(math.pi * (step - plan.warmup) / (plan.steps - plan.warmup))) / 2


def encode_by_length(model, tokens, groups=4):
    """(B, L) -> (B, D): text features, in groups of similar length, so that short texts cost little."""
    lengths = tokens.argmax(1) + 1
    order = lengths.argsort(stable=True)
    parts = [model.encode_text(tokens[part, : lengths[part].max()]) for part in order.chunk(groups)]
    return torch.cat(parts)[order.argsort()]


def train_step(model, optimizer, batch, lr):
    """One update; returns (loss, hit) as tensors."""
    pixels, tokens, captions = batch
    for group in optimizer.param_groups:
        group["lr"] = lr
    with torch.autocast("cpu", torch.bfloat16):
        image, text = model.encode_image(pixels), encode_by_length(model, tokens)
    loss, hit = contrastive_loss(image.float(), text.float(), model.logit_scale.exp(), captions)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=LOGIT_SCALE_MAX)
    return loss.detach(), hit


def export(model, log, folder):
    """Weights (fp16 safetensors) and log into `folder`, atomically."""
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_write(folder / WEIGHTS.name) as file:
        file.write(save(state, {"step": str(log["steps"][-1][0])}))
    with atomic_write(folder / LOG, "w") as file:
        lines = ",\n".join(json.dumps(line) for line in log["steps"])
        head = json.dumps({key: value for key, value in log.items() if key != "steps"})
        file.write(head[:-1] + ', "steps": [\n' + lines + "\n]}\n")


def train(plan, stop=None):
    """Train up to `stop` (default: plan.steps) steps. Returns (model, log).

    log["steps"]: [step, loss, hit] of the first SHOW steps, then means over each SHOW.
    """
    model, optimizer = build(plan)
    log, recent, started = {"plan": asdict(plan), "torch": str(torch.__version__), "steps": []}, [], time.perf_counter()
    for step in range(stop or plan.steps):
        recent.append(train_step(model, optimizer, batch(plan, step), learning_rate(plan, step)))
        done = step + 1
        if done <= SHOW or done % SHOW == 0:
            loss, hit = torch.tensor(recent).mean(0).tolist()
            log["wall_s"] = round(time.perf_counter() - started, 1)
            log["steps"].append([done, round(loss, 4), round(hit, 4)])
            get_logger().info(f"step {done}/{plan.steps} loss {loss:.4f} hit {hit:.3f} {log['wall_s']:.0f} s")
            recent = []
    return model, log


def main():
    options = build_parser().parse_args()
    torch.set_num_threads(options.threads)
    export(*train(Plan(steps=options.steps)), options.export)


if __name__ == "__main__":
    main()

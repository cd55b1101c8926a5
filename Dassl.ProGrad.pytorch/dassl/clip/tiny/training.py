"""How the tiny CLIP was trained: `python -m dassl.clip.tiny.train`.

Symmetric contrastive loss, bf16 autocast. Every batch is a function of (seed, step), so a run that was cut off goes
on as if it had not been.
"""

import importlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional as F

from dassl.clip.tiny.model import LOGIT_SCALE_MAX, MEAN, STD, TinyCLIP
from dassl.clip.tiny.tokenizer import PAD, tokenizer
from dassl.utils import atomic_save, atomic_write, get_logger, load_checkpoint

WEIGHTS, LOG = "tiny_clip.safetensors", "train_log.json"
SAVE, SHOW, USABLE = 200, 20, 600  # steps between checkpoints, between lines of the log, before an export
PICTURES = "datasets.toy.pretrain"  # a module with render_pool and load_chunk; the engine itself needs no data set


@dataclass(frozen=True)
class Plan:
    """What decides the weights. A chunk of the pool holds `chunk` pictures and gives chunk / batch steps."""

    seed: int = 1
    steps: int = 4000
    batch: int = 256
    chunks: int = 32
    chunk: int = 5120
    lr: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.1
    spell: float = 0.08  # share of known words that are spelled, so that letters come to mean something
    shift: int = 1  # pixels a picture is moved at most


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


class Batches:
    """Batch of a step: (pixels, tokens, captions). Chunk by chunk through the pool, shuffled inside."""

    def __init__(self, plan, folder):
        self.plan, self.folder = plan, folder
        self.source = importlib.import_module(PICTURES)
        self.held = (None, None)

    def __call__(self, step):
        plan = self.plan
        each = plan.chunk // plan.batch
        turn, place = divmod(step, each)
        number = turn % plan.chunks
        if self.held[0] != number:
            self.held = (number, self.source.load_chunk(self.folder, plan.seed, number, plan.chunk))
        images, captions = self.held[1]
        order = np.random.default_rng([plan.seed, 1, turn]).permutation(plan.chunk)
        chosen = order[place * plan.batch : (place + 1) * plan.batch]
        rng = np.random.default_rng([plan.seed, 2, step])
        words = [captions[i][rng.integers(len(captions[i]))] for i in chosen]
        pixels = augment(to_pixels(images[chosen]), rng, plan.shift)
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
    options = [
        {"params": groups[0], "weight_decay": plan.weight_decay},
        {"params": groups[1], "weight_decay": 0.0},
    ]
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


def train_step(model, optimizer, batch, lr, precision=torch.bfloat16):
    """One update; returns (loss, hit) as tensors."""
    pixels, tokens, captions = batch
    for group in optimizer.param_groups:
        group["lr"] = lr
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
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
    with atomic_write(folder / WEIGHTS) as file:
        file.write(save(state, {"step": str(log["steps"][-1][0]) if log["steps"] else "0"}))
    with atomic_write(folder / LOG, "w") as file:
        lines = ",\n".join(json.dumps(line) for line in log["steps"])
        head = json.dumps({key: value for key, value in log.items() if key != "steps"})
        file.write(head[:-1] + ', "steps": [\n' + lines + "\n]}\n")


def train(plan, work, *, folder=None, stop=None):
    """Train up to `stop` (default: plan.steps) steps, going on from work/checkpoint.pt. Returns (model, log).

    log["steps"]: [step, loss, hit] of the first SHOW steps, then means over each SHOW. Exports into `folder`.
    """
    saved, stop = Path(work) / "checkpoint.pt", stop or plan.steps
    model, optimizer = build(plan)
    log, first = {"plan": asdict(plan), "torch": str(torch.__version__), "wall_s": 0.0, "steps": []}, 0
    if saved.exists():
        state = load_checkpoint(saved)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        log, first = state["log"] | {"plan": asdict(plan)}, state["step"]
    batches, recent, began = Batches(plan, Path(work) / "pool"), [], time.perf_counter() - log["wall_s"]
    for step in range(first, stop):
        recent.append(train_step(model, optimizer, batches(step), learning_rate(plan, step)))
        done = step + 1
        if done <= SHOW or done % SHOW == 0:
            loss, hit = torch.tensor(recent).mean(0).tolist()
            log["wall_s"] = round(time.perf_counter() - began, 1)
            log["steps"].append([done, round(loss, 4), round(hit, 4)])
            get_logger().info(f"step {done}/{stop} loss {loss:.4f} hit {hit:.3f} {log['wall_s']:.0f} s")
            recent = []
        if done % SAVE == 0 or done == plan.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            atomic_save(state | {"log": log, "step": done}, saved)
            if folder is not None and done > USABLE:
                export(model, log, folder)
    return model, log

"""The path card of a stage-2 run: loss and accuracy along zero-shot -> ours -> fine-tuned.

Class vectors are interpolated (the path of SPACE features), and image features come from the bank, so a card
costs seconds. t runs from 0 (zero-shot) over 1 (ours) to 2 (fine-tuned), as in the paper's Figure 2.
Letters: B images, C classes, D joint width, S line points.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.config import get_cfg_default
from dassl.engine import add_trainer_nodes, build_trainer
from dassl.utils import UserError, write_json
from mergetune.lmc import line_logits

LEG_POINTS = 21  # on each of the two straight pieces, ends included
FILE = "path.json"


@torch.no_grad()
def curve(image: Tensor, labels: Tensor, vectors: list[Tensor], scale: Tensor) -> tuple[list, list, list]:
    """t, cross-entropy in nats and accuracy in percent along the pieces between class vectors.

    image (B, D) unit norm, labels (B,), vectors: solutions (C, D) in order; piece i covers t in [i, i + 1].
    """
    points = torch.linspace(0, 1, LEG_POINTS, device=image.device)
    ts, losses, accuracies = [], [], []
    for i, (start, end) in enumerate(zip(vectors, vectors[1:], strict=False)):
        for t in points if i == 0 else points[1:]:
            logits = line_logits(image, start, end, t[None], scale)[0]  # (B, C)
            ts.append(round(i + t.item(), 6))
            losses.append(F.cross_entropy(logits, labels).item())
            accuracies.append(100 * (logits.argmax(1) == labels).float().mean().item())
    return ts, losses, accuracies


@torch.no_grad()
def test_features(trainer) -> tuple[Tensor, Tensor]:
    """Unit-norm features (B, D) and labels (B,) of the whole test split."""
    trainer.route_split("test")
    pairs = [trainer.parse_batch_test(batch) for batch in trainer.test_loader]
    return torch.cat([trainer.image_features(images) for images, _ in pairs]), torch.cat([y for _, y in pairs])


def path_card(run: str | Path) -> dict:
    """Compute and write RUN/path.json from the run's config, its stage 1 and its checkpoint."""
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder: it holds no config.yaml")
    card: dict = {"format": 1, "space": "features"}
    for subset in ("base", "new"):
        cfg = get_cfg_default()
        add_trainer_nodes(cfg)
        cfg.merge_from_file(str(run / "config.yaml"))
        if not cfg.RESUME_COOP:
            raise UserError(f"{run} is no stage-2 run: its config names no stage-1 folder")
        cfg.merge_from_list(["DATASET.SUBSAMPLE_CLASSES", subset, "VERBOSE", False])
        trainer = build_trainer(cfg)
        trainer.load_model(str(run))
        vectors = [trainer.f1, trainer.class_vectors(), trainer.f2]
        image, labels = test_features(trainer)
        card["t"], loss, accuracy = curve(image, labels, vectors, trainer.clip.logit_scale)
        card[subset] = {"loss": loss, "accuracy": accuracy}
    write_json(card, str(run / FILE))
    return card

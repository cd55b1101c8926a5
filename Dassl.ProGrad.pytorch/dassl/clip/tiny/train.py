"""Train the tiny CLIP from scratch on captioned toy images.

    python -m dassl.clip.tiny.train --work DIR [--threads 1]      (from the repository root)

Renders the pool of images below DIR, trains, and writes a checkpoint every 200 steps, from which the same command
goes on. Weights and log go beside this file.
"""

import argparse
import importlib
from pathlib import Path

HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="folder for the pool and the checkpoint")
    parser.add_argument("--export", type=Path, default=HERE, help="folder for weights and log")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4000)
    options = parser.parse_args()
    import torch

    from dassl.clip.tiny.training import PICTURES, Plan, train

    plan = Plan(steps=options.steps)
    importlib.import_module(PICTURES).render_pool(Path(options.work) / "pool", plan.seed, plan.chunks)
    torch.set_num_threads(options.threads)
    train(plan, options.work, folder=options.export)


if __name__ == "__main__":
    main()

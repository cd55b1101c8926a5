"""train.py, which gets a SIGTERM in the second step of its second epoch: python -m tests.gpu.stopped WORDS."""

import os
import signal
import sys

import train
from dassl.engine.trainer import EpochTrainer


def main() -> None:
    step = EpochTrainer.forward_backward

    def stopping(trainer, *batch):
        if (trainer.epoch, trainer.batch_idx) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *batch)

    EpochTrainer.forward_backward = stopping
    train.main(sys.argv[1:])


if __name__ == "__main__":
    main()

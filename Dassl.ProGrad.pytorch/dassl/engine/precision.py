"""Mixed precision, in one place: fp32, fp16, amp or bf16. Nothing else in the project casts or scales.

mode   frozen towers   forward pass                      gradients
fp32   float32         float32                           plain
fp16   float16         as the weights are                plain (as CLIP's first adapters trained; CUDA only)
amp    float32         float16 autocast                  scaled; not on CUDA as bf16, which needs no scaling
bf16   float32         bfloat16 autocast                 plain
"""

import contextlib
from collections.abc import Sequence

import torch

from dassl.config import Key
from dassl.utils import UserError, check_availability, get_logger

MODES = ("fp32", "fp16", "amp", "bf16")


def precision_key(default: str, choices: Sequence[str] = MODES) -> Key:
    """The key PREC of a trainer's node."""
    return Key(default, "precision", choices=choices)


class Precision:
    """How one trainer computes on one device.

    scaler: gradient scaler, or None where none is needed. dtype: what frozen towers are cast to.
    Raises UserError for an unknown mode, or one that this PyTorch does not have on the device.
    """

    def __init__(self, mode: str = "fp32", device: str | torch.device = "cpu") -> None:
        check_availability(mode, MODES, "The precision PREC")
        self.mode = mode
        self.device = torch.device(device)
        cuda = self.device.type == "cuda"
        half = torch.float16 if cuda else torch.bfloat16
        self._autocast = {"amp": half, "bf16": torch.bfloat16}.get(mode)
        self.scaler = torch.amp.GradScaler("cuda") if mode == "amp" and cuda else None
        self.dtype = torch.float16 if mode == "fp16" and cuda else torch.float32
        if self._autocast and not torch.amp.is_autocast_available(self.device.type):
            raise UserError(f"Precision {mode} on {self.device.type} needs a newer PyTorch; PREC fp32 works")
        where = {"cpu": "a CPU"}.get(self.device.type, self.device.type)
        if not cuda and mode == "amp":
            get_logger().info(f"Precision amp on {where}: bfloat16 autocast, no gradient scaling")
        if not cuda and mode == "fp16":
            get_logger().info(f"Precision fp16 on {where}: evaluation in float32, no training")

    def check_training(self) -> None:
        """Refuse to train in fp16 elsewhere than on CUDA, before anything is written."""
        if self.mode == "fp16" and self.device.type != "cuda":
            raise UserError("Precision fp16 trains on CUDA only; elsewhere set PREC to fp32, bf16 or amp")

    def autocast(self) -> contextlib.AbstractContextManager:
        """Context manager for a forward pass."""
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)

    def backward(self, loss: torch.Tensor) -> None:
        """Backward pass of a scalar, scaled if need be."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, optimizers: Sequence[torch.optim.Optimizer], max_norm: float = 0.0) -> None:
        """One step of each optimizer; with scaling, a step whose gradients overflow is left out.

        max_norm: all gradients together are scaled down to this norm where theirs is larger; 0 leaves them.
        """
        with_gradient = list(filter(_has_gradient, optimizers))
        if max_norm > 0:
            if self.scaler is not None:  # the norm is that of the true gradients
                for optimizer in with_gradient:
                    self.scaler.unscale_(optimizer)
            params = [param for optim in optimizers for group in optim.param_groups for param in group["params"]]
            torch.nn.utils.clip_grad_norm_(params, max_norm)
        if self.scaler is None:
            for optimizer in optimizers:
                optimizer.step()
        elif with_gradient:
            for optimizer in with_gradient:
                self._scaled_step(optimizer)
            self.scaler.update()

    def _scaled_step(self, optimizer):
        """By torch's fused kernel, if there is one: it leaves itself out where gradients overflow, while for another
        one the host must be told. The state is the plain one's. SGD with momentum begins with a plain step: a fused
        one that is left out leaves its buffer undefined."""
        steps = [(group, p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        fused = type(optimizer) in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW) and all(
            p.is_floating_point()
            and not (p.grad.is_sparse or group["foreach"] or group["differentiable"] or group["fused"] is not None)
            and not (group.get("momentum") and optimizer.state.get(p, {}).get("momentum_buffer") is None)
            for group, p in steps
        )
        for group, p in steps if fused else ():
            group["fused"] = optimizer._step_supports_amp_scaling = True
            if "step" in (state := optimizer.state.get(p, {})):
                state["step"] = state["step"].to(p.device)
        self.scaler.step(optimizer)
        for group, _ in steps if fused else ():
            group["fused"] = optimizer._step_supports_amp_scaling = None

    def state_dict(self) -> dict:
        """That of the scaler; empty without one."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` gave, where both runs scale."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


def _has_gradient(optimizer):
    return any(param.grad is not None for group in optimizer.param_groups for param in group["params"])

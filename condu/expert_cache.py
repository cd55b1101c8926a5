"""A few resident CLIPs whose weights are filled in place by whichever expert is needed (arXiv 2503.10705).

A stream of T tasks has T experts, each a pretrained CLIP plus a decoupled delta. None is kept on disk as
weights: an expert is made when asked for, in a CLIP of its own whose memory is used again and again.
"""

import copy
from collections import OrderedDict

import torch

from dassl.utils import UserError
from dassl.utils.moved import old_names


class ExpertCache:
    """At most `capacity` experts at once; the one not used for longest gives way.

    pretrained: the shared ClipBackbone, never written to. make: () -> a ClipBackbone of its own (default: a
    copy of `pretrained`); called when a slot is used first. filled: how often weights were written.
    UserError for a capacity below 1.
    """

    def __init__(self, pretrained, make=None, capacity=1):
        if capacity < 1:
            raise UserError(f"RESIDENT is {capacity}, expected at least one resident expert")
        self.pretrained, self.capacity = pretrained, capacity
        self.filled = 0
        self._make = make or (lambda: copy.deepcopy(pretrained))
        self._resident = OrderedDict()  # key -> ClipBackbone, the one used last at the end
        self._idle = []

    def clip(self, key, fill):
        """The CLIP with the weights of `key`, frozen: right until another key is asked for.

        key: says what the weights are, so that equal keys are equal weights; fill(parameters) writes them
        into {name: Parameter} in place, every name that any other fill of these slots writes.
        """
        if key in self._resident:
            self._resident.move_to_end(key)
            return self._resident[key]
        if self._idle:
            clip = self._idle.pop()
        elif len(self._resident) < self.capacity:
            clip = self._make().freeze()
        else:
            clip = self._resident.popitem(last=False)[1]
        try:
            with torch.no_grad():
                fill(dict(clip.module.named_parameters()))
        except BaseException:
            self._idle.append(clip)  # half filled, so under no key
            raise
        self.filled += 1
        self._resident[key] = clip
        return clip


__getattr__ = old_names(__name__)

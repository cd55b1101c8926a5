"""RAdam (Liu et al. 2020, arXiv 1908.03265), torch's own with decoupled weight decay."""

import torch


class RAdam(torch.optim.RAdam):
    """Adam with a rectified variance; steps like SGD with momentum while the variance is intractable."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled_weight_decay=True)

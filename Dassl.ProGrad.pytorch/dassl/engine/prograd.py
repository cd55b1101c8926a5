"""The gradient rule of ProGrad (Zhu et al., arXiv 2205.14865)."""

import torch


def project_conflicting(grad_a, grad_b, lambda_=1.0):
    """`grad_a` without `lambda_` times its part along `grad_b`, if the two point apart; else `grad_a`.

    Both have one shape; their angle is taken over the whole tensor. A zero `grad_b` changes nothing.
    """
    norm = torch.linalg.vector_norm(grad_b)
    if norm == 0:
        return grad_a
    direction = grad_b / norm
    along = torch.sum(grad_a * direction)
    return grad_a - lambda_ * along * direction if along < 0 else grad_a

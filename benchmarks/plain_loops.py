"""Descent on the 2x2 problem as one would write it down, to compare with."""

import numpy as np

TARGET = np.array([[0.0, 1.0], [1.0, 0.0]])
MASK = np.array([[0.0, 1.0], [1.0, 1.0]])


def numpy_loop(factors: list[np.ndarray], learning_rate: float, steps: int) -> float:
    """Gradients by hand, one NumPy call per product; returns the final loss."""
    factors = [factor.copy() for factor in factors]
    depth, loss = len(factors), np.inf
    for _ in range(steps):
        inner = [np.eye(2)]
        for factor in factors:
            inner.append(factor @ inner[-1])
        residual = MASK * (inner[-1] - TARGET)
        loss = 0.5 * float(np.sum(residual**2))
        outer = residual
        gradients = []
        for layer in reversed(range(depth)):
            gradients.append(outer @ inner[layer].T)
            outer = factors[layer].T @ outer
        for factor, gradient in zip(factors, reversed(gradients), strict=True):
            factor -= learning_rate * gradient
    return loss


def torch_loop(factors: list[np.ndarray], learning_rate: float, steps: int) -> float:
    """Automatic differentiation and an optimizer, as the paper's experiments are run."""
    import torch

    torch.set_num_threads(1)
    parameters = [torch.nn.Parameter(torch.tensor(factor.astype("float32"))) for factor in factors]
    target, mask = torch.tensor(TARGET.astype("float32")), torch.tensor(MASK.astype("float32"))
    optimizer = torch.optim.SGD(parameters, lr=learning_rate)
    value = np.inf
    for _ in range(steps):
        product = parameters[0]
        for parameter in parameters[1:]:
            product = parameter @ product
        loss = 0.5 * (mask * (product - target) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = float(loss.detach())
    return value

"""The best parameters and tokens for a compute budget, C = 6 N D, by a Chinchilla law (arXiv 2203.15556)."""

import numpy as np

from hyperp.analysis.loss.fit import LossFit

FLOPS_PER_TOKEN = 6.0  # training FLOPs for each parameter and token


def best_parameters(fit: LossFit, z_RP: np.ndarray, flops_m: np.ndarray, data_set: int = 0) -> np.ndarray:
    """Parameters N* (R, m) with the lowest loss at each compute of 6 N D.

    Where N D is held, alpha A N^-alpha = beta B D^-beta at the optimum, so N* = G (C / 6)^(beta / (alpha +
    beta)), with G^(alpha + beta) = alpha A / (beta B) (section 3.3 of arXiv 2203.15556).

    Args:
        fit: a law of the form "chinchilla".
        z_RP: as `LossFit.z_P`, one row for each fit.
        flops_m: compute budgets.
        data_set: index of the data set whose loss counts.
    """
    return np.exp(np.log(fit.centre_K[0]) + _logs_from_centre(fit, z_RP, flops_m, data_set)[0])


def lowest_loss(fit: LossFit, z_RP: np.ndarray, flops_m: np.ndarray, data_set: int = 0) -> np.ndarray:
    """The loss (R, m) at N* and D* of each compute; arguments as of `best_parameters`."""
    displaced = _logs_from_centre(fit, z_RP, flops_m, data_set)
    sizes = fit.layout.log_terms(z_RP)[:, :, data_set].T[:, :, None]
    exponents = fit.layout.exponents(z_RP).T[:, :, None]
    floor = fit.layout.floors(z_RP)[:, data_set, None]
    return floor + np.exp(sizes - exponents * np.stack(displaced)).sum(axis=0)


def parameter_exponent(fit: LossFit, z_RP: np.ndarray) -> np.ndarray:
    """The exponent of N* in the compute (R,), beta / (alpha + beta); that of D* is one less it."""
    alpha, beta = fit.layout.exponents(z_RP).T
    return beta / (alpha + beta)


def _logs_from_centre(
    fit: LossFit, z_RP: np.ndarray, flops_m: np.ndarray, data_set: int
) -> tuple[np.ndarray, np.ndarray]:
    """ln of N* and of D* over the geometric means of the points' N and D, each (R, m)."""
    alpha, beta = fit.layout.exponents(z_RP).T[:, :, None]
    log_a, log_b = fit.layout.log_terms(z_RP)[:, :, data_set].T[:, :, None]
    product = np.log(flops_m / FLOPS_PER_TOKEN) - np.log(fit.centre_K).sum()
    n = (np.log(alpha / beta) + log_a - log_b + beta * product) / (alpha + beta)
    return n, product - n

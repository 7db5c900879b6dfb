"""Schedule and losses against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffusion.objective import discretized_log_likelihood, gaussian_kl, min_snr_weight, training_losses
from diffusion.schedule import linear_schedule

SCHEDULE = linear_schedule()
SHAPE = (3, 16, 8, 8)


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator), torch.tensor([1, 400, 999])


def constant_network(noise: torch.Tensor, variance: torch.Tensor):
    return lambda x, timestep, y: torch.cat([noise, variance], dim=1)


def test_a_perfect_prediction_has_no_loss():
    x0, noise, timestep = batch()
    network = constant_network(noise, -torch.ones(SHAPE))  # -1: exactly the posterior's variance
    losses = training_losses(network, x0, timestep, torch.zeros(3, 1, 4), noise)
    assert losses["mse"].abs().max() == 0
    assert losses["vb"].abs().max() < 1e-5


def test_the_bound_of_a_too_wide_variance_is_the_closed_form():
    """With the right mean and variance beta, the bound is the KL of two centred normals, in bits."""
    x0, noise, timestep = batch()
    losses = training_losses(constant_network(noise, torch.ones(SHAPE)), x0, timestep, torch.zeros(3, 1, 4), noise)
    posterior = Normal(0.0, SCHEDULE.posterior_variance[timestep].sqrt())
    expected = kl_divergence(posterior, Normal(0.0, SCHEDULE.betas[timestep].sqrt())) / math.log(2)
    torch.testing.assert_close(losses["vb"].double(), expected, rtol=1e-3, atol=1e-6)


def test_loss_is_the_sum_and_the_bound_trains_the_variance_alone():
    x0, noise, timestep = batch()
    prediction, variance = torch.zeros(SHAPE, requires_grad=True), torch.zeros(SHAPE, requires_grad=True)
    losses = training_losses(constant_network(prediction, variance), x0, timestep, torch.zeros(3, 1, 4), noise)
    assert torch.equal(losses["loss"], losses["mse"] + losses["vb"])
    torch.testing.assert_close(losses["mse"], (noise**2).mean((1, 2, 3)))
    of_prediction, of_variance = torch.autograd.grad(losses["vb"].sum(), [prediction, variance])
    assert of_prediction.abs().sum() == 0 and of_variance.abs().sum() > 0


def test_a_predicted_velocity_gives_the_bound_of_its_noise():
    """The exact velocity has no error; any other has the bound of the noise that it stands for."""
    x0, noise, timestep = batch()
    variance = torch.zeros(SHAPE)
    alpha_bar = SCHEDULE.alpha_bar[timestep].float().view(-1, 1, 1, 1)
    exact = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0
    x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise

    def losses(prediction: torch.Tensor, prediction_type: str) -> dict[str, torch.Tensor]:
        network = constant_network(prediction, variance)
        return training_losses(network, x0, timestep, torch.zeros(3, 1, 4), noise, prediction_type=prediction_type)

    assert losses(exact, "v_prediction")["mse"].max() < 1e-12
    of_velocity = losses(exact + 0.1, "v_prediction")
    torch.testing.assert_close(of_velocity["mse"], torch.full((3,), 0.01))
    as_noise = alpha_bar.sqrt() * (exact + 0.1) + (1 - alpha_bar).sqrt() * x_t
    torch.testing.assert_close(of_velocity["vb"], losses(as_noise, "epsilon")["vb"], rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="prediction_type 'x0'"):
        losses(exact, "x0")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_the_error_and_nothing_else(prediction_type):
    x0, noise, timestep = batch()
    network = constant_network(0.5 * noise, torch.zeros(SHAPE))

    def losses(gamma: float | None) -> dict[str, torch.Tensor]:
        arguments = (network, x0, timestep, torch.zeros(3, 1, 4), noise)
        return training_losses(*arguments, prediction_type=prediction_type, min_snr_gamma=gamma)

    plain, weighted = losses(None), losses(5.0)
    assert torch.equal(plain["mse"], weighted["mse"]) and torch.equal(plain["vb"], weighted["vb"])
    for i, t in enumerate(timestep.tolist()):  # one SNR above gamma, two below
        alpha_bar = math.prod(1 - (1e-4 + (0.02 - 1e-4) * step / 999) for step in range(t + 1))
        snr = alpha_bar / (1 - alpha_bar)
        assert (snr > 5) == (t == 1)
        weight = min(snr, 5) / (snr if prediction_type == "epsilon" else snr + 1)
        expected = weight * plain["mse"][i].item() + plain["vb"][i].item()
        assert weighted["loss"][i].item() == pytest.approx(expected, rel=1e-5)


def test_min_snr_is_the_same_weight_of_x0_for_either_prediction():
    """Squared errors of noise and velocity that stand for one error of x0 cost the same: min(SNR, gamma) times it."""
    snr = 1 / SCHEDULE.noise_levels**2
    of_noise, of_velocity = (min_snr_weight(SCHEDULE, 5.0, kind) for kind in ("epsilon", "v_prediction"))
    torch.testing.assert_close(of_noise * snr, snr.clamp(max=5))
    torch.testing.assert_close(of_velocity / (1 - SCHEDULE.alpha_bar), snr.clamp(max=5))
    assert of_noise[-1] == 1 and of_noise[0] < 1e-3
    with pytest.raises(ValueError, match="prediction_type 'x0'"):
        min_snr_weight(SCHEDULE, 5.0, "x0")


def test_gaussian_kl_equals_torch():
    mean1, mean2, log1, log2 = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    expected = kl_divergence(Normal(mean1, (log1 / 2).exp()), Normal(mean2, (log2 / 2).exp()))
    torch.testing.assert_close(gaussian_kl(mean1, log1, mean2, log2), expected)


def test_discretized_likelihood_is_a_distribution_over_256_bins():
    bins = torch.linspace(-1, 1, 256)
    log_probability = discretized_log_likelihood(bins, torch.tensor(0.3), torch.tensor(math.log(0.2)))
    assert log_probability.exp().sum().item() == pytest.approx(1, abs=1e-4)
    middle = Normal(0.3, 0.2)
    x = bins[150]
    expected = (middle.cdf(x + 1 / 255) - middle.cdf(x - 1 / 255)).log()
    assert log_probability[150].item() == pytest.approx(expected.item(), abs=1e-2)  # the tanh approximation


def test_a_network_without_variance_raises():
    x0, noise, timestep = batch()
    with pytest.raises(ValueError, match="expected 32"):
        training_losses(lambda x, t, y: x, x0, timestep, torch.zeros(3, 1, 4), noise)

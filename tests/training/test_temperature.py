"""One number makes scores say how sure a network is; no mask at 0.5 changes."""

import pytest
import torch

from modeling_rasalore import RasaloreConfig, RasaloreModel
from modeling_rasalore.training.stage2 import fit_temperature


def judged(chances: torch.Tensor, factor: float, count: int = 4000) -> tuple[torch.Tensor, ...]:
    """Logits `factor` times as large as the chances that decided the masks, and these."""
    masks = torch.rand(count, len(chances), generator=torch.Generator().manual_seed(0)) < chances
    logits = factor * chances.logit().expand(count, -1)
    return logits.flatten(), masks.flatten().to(torch.uint8)


@pytest.mark.parametrize("factor", [1.0, 3.0, 40.0])
def test_the_factor_by_which_logits_are_too_large_is_found(factor: float) -> None:
    logits, masks = judged(torch.tensor([0.05, 0.3, 0.8, 0.97]), factor)
    halves = [(logits[::2], masks[::2]), (logits[1::2], masks[1::2])]
    assert fit_temperature(halves) == pytest.approx(factor, rel=0.05)


def test_nobody_is_made_surer_and_without_samples_nothing_changes() -> None:
    assert fit_temperature([judged(torch.tensor([0.1, 0.9]), 0.2)]) == pytest.approx(1, abs=1e-3)
    assert fit_temperature([]) == 1.0
    always_right = torch.tensor([50.0, -50.0]), torch.tensor([1, 0])
    assert fit_temperature([always_right]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_a_temperature_divides_logits_in_evaluation_alone(training: bool) -> None:
    torch.manual_seed(0)
    model = RasaloreModel(RasaloreConfig.preset("tiny", value_noise="none")).train(training)
    pixel_values = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        plain = model(pixel_values).logits
        model.config.temperature = 4.0
        assert torch.equal(model(pixel_values).logits, plain if training else plain / 4)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0\.0"):
        RasaloreConfig(temperature=0.0)

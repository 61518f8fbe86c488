"""Reading what runs leave behind, for comparison."""

from pathlib import Path

import torch

from batch_renorm.records.curve import BY_THE_CLOCK
from batch_renorm.running.checkpoints import checkpoints


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, mu, sigma, and the average of them, of a run's newest checkpoint."""
    return torch.load(checkpoints(folder)[0], weights_only=True)["state_dict"]


def mu_and_sigma(state: dict[str, torch.Tensor], eps: float) -> dict[str, torch.Tensor]:
    """The same in the paper's terms."""
    found = {name: value for name, value in state.items() if ".running_" not in name}
    for name, value in state.items():
        if name.endswith(".running_mean"):
            found[name.replace("running_mean", "mu")] = value
        elif name.endswith(".running_var"):
            found[name.replace("running_var", "sigma")] = (value + eps).sqrt()
    return found


def curve(folder: Path) -> list[tuple[str, ...]]:
    """The header and rows of a curve that time has no part in."""
    rows = [tuple(line.split(",")) for line in (folder / "curve.csv").read_text().splitlines()]
    return [row for row in rows if not row[1].startswith(BY_THE_CLOCK)]


def assert_same_run(left: Path, right: Path) -> None:
    """The curve, and in the last checkpoint weights, mu, sigma, their average, the optimiser's state: bit for bit."""
    assert curve(left) == curve(right)
    held = [torch.load(checkpoints(folder)[0], weights_only=True) for folder in (left, right)]
    one, other = [[last["state_dict"], *(each["state"] for each in last["optimizer_states"])] for last in held]
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)

"""A trained run's objective, with the networks that it trained beside the model."""

from __future__ import annotations

from robustfast.models.stored_state import fits_the_model, load
from robustfast.objectives import OBJECTIVES, Objective
from robustfast.registry import lookup
from robustfast.training.run_folder import Run

__all__ = ["run_objective"]


def run_objective(run: Run) -> Objective:
    """The objective around `run.model`, its `networks()` with the weights of the run's checkpoint, in eval mode.

    Raises:
        UserError: a checkpoint that is damaged or lacks them.
    """
    config = run.config
    objective = lookup("objective", OBJECTIVES, config.method)(
        run.model, config.objective, config.attack, seed=config.seed, engine=config.attack_engine
    )
    if networks := objective.networks():
        device = next(run.model.parameters()).device
        with fits_the_model(run.checkpoint, f"put back the one that {run.path} was trained to"):
            stored = load(run.checkpoint, device)["engine"]["networks"]
            for name, network in networks.items():
                network.load_state_dict(stored[name])
                network.to(device).eval()
    return objective

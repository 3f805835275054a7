"""Every figure of the project: functions from numbers to a PNG file, one per file."""

from robustfast.visualization.ablation_bars import ablation_bars
from robustfast.visualization.disentanglement_bars import disentanglement_bars
from robustfast.visualization.disentanglement_curve import disentanglement_curve

__all__ = ["ablation_bars", "disentanglement_bars", "disentanglement_curve"]

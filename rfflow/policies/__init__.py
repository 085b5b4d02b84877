"""Rules that issue ops by themselves: what a policy sees, what it may ask for, and the policies that rfflow brings."""

from __future__ import annotations

from rfflow.control.journal import Past
from rfflow.policies.halving import Halving, Hyperband
from rfflow.policies.median import Median
from rfflow.policies.race import Race
from rfflow.policies.rules import Rules
from rfflow.policies.scene import Decision, Policy, RunView, Scene

__all__ = ["Decision", "Halving", "Hyperband", "Median", "Past", "Policy", "Race", "Rules", "RunView", "Scene"]

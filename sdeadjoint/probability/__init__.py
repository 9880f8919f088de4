"""Probabilities: of a sampler's steps and paths, and of samples."""

from .flow_grpo import FlowGRPO, flow_grpo
from .transitions import Transitions, path_log_weight, transition_kl, transition_log_prob, transitions

__all__ = [
    "FlowGRPO",
    "Transitions",
    "flow_grpo",
    "path_log_weight",
    "transition_kl",
    "transition_log_prob",
    "transitions",
]

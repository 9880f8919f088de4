"""Probabilities: of a sampler's steps and paths, and of samples."""

from .divergence import Divergence, ExactDivergence, Hutchinson
from .flow_grpo import FlowGRPO, flow_grpo
from .likelihood import LogLikelihood, Pushforward, dequantise, log_likelihood, pushforward_log_prob
from .transitions import Transitions, path_log_weight, transition_kl, transition_log_prob, transitions

__all__ = [
    "Divergence",
    "ExactDivergence",
    "FlowGRPO",
    "Hutchinson",
    "LogLikelihood",
    "Pushforward",
    "Transitions",
    "dequantise",
    "flow_grpo",
    "log_likelihood",
    "path_log_weight",
    "pushforward_log_prob",
    "transition_kl",
    "transition_log_prob",
    "transitions",
]

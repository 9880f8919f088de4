"""An audit of samplers: what they claim, what is measured, and how far their samples and gradients are off."""

from __future__ import annotations

from .measure import Plan, audit
from .result import Audit, Finding, Own, Row, Slope
from .subjects import Course, Subject, schedulers, subjects

__all__ = ["Audit", "Course", "Finding", "Own", "Plan", "Row", "Slope", "Subject", "audit", "schedulers", "subjects"]

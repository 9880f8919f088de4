"""Diffusion models: schedules, denoisers, frames and grids, and the reverse equation that they make."""

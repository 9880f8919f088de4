"""Morphing two faces: a small trained network, the law that it was trained on, and a latent found by gradient."""

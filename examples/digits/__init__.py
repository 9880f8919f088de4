"""What the examples on handwritten digits share: the trained network, and what judges its images."""

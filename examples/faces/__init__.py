"""The training of the demo's network of faces."""

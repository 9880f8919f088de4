"""The machinery of the exact adjoints: a forward sweep without activations, a backward sweep that replays it."""

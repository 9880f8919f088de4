"""Each example is run as it is, and the claims that its table prints are asserted."""

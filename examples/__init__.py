"""What the library is for, one script per task: ``python -m examples.morphing --out morphing-out``."""

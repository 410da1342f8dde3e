"""What is done once a machine has a GPU: `make gpu` (run.py), and what stands for a GPU where there is none."""

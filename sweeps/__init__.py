"""Run many trainings: plan a grid, run it, account for every run."""

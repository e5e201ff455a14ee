"""Parallelism as data: a strategy says which axes go to which mesh axes; a plan is a strategy on a mesh of numbers."""

"""Scores of networks that predict labels or numbers, not one class of each image."""

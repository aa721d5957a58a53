"""Steerable twins of networks that are not ours: their convolutions become group convolutions."""

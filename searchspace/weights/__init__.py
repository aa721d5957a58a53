"""Choices about the weights of convolutions: what is relaxed there, and what governs it."""

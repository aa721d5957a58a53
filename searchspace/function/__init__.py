"""Choices about the whole function that an architecture computes, around and beside its stages."""

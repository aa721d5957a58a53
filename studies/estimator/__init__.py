"""A scikit-learn classifier that searches for its network."""

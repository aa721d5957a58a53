"""What becomes of a trained trial without training it from the beginning."""

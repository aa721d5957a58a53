"""Files that hold images with their labels, one module a family of formats."""

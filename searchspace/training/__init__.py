"""Parts of a recipe: how training sees images, and what it adds to the cross entropy."""

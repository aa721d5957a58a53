"""Networks whose constraint is softened after training, and bounds on what that changes."""

"""A linear head on a frozen backbone: features once per image, fitted by a solver."""

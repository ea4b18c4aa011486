"""What every side of a federation agrees on, byte for byte. Imports no other room."""

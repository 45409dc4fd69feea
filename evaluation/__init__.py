"""What an evaluation stores and what it says."""

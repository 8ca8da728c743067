"""What is declared of a table."""

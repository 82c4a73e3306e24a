"""What a student is asked, and how its answers are scored, one module per evaluation."""

"""What was asked, paid and answered, in SQL."""

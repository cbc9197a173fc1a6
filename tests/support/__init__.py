"""What only our own tests and benchmarks use: PostgreSQL, Airflow under test, the books, a network taken away."""

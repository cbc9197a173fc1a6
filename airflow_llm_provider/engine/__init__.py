"""What happens to one request, and to many; knows no Airflow."""

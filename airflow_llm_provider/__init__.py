"""Claude in ordinary Airflow DAGs: scheduled batch document processing that loses nothing."""

__version__ = "0.1.0"

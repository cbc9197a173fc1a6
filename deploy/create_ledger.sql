-- The ledger has a database of its own: Airflow's is Airflow's.
CREATE DATABASE llm_ledger OWNER airflow;

-- Run once, as the database's user: psql --dbname postgres --file databases.sql
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
CREATE DATABASE prefect;

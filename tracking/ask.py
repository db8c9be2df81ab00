"""Whether MLflow lets us in, asked before any work that would find it out at its end."""

from tracking.store import connect, database_file, tracking_uri, translate_errors


def check_access() -> None:
    """Ask the tracking store for one thing that needs a user's right to read.

    MlflowAway where it does not answer, MlflowRefused where it wants another user or password, MlflowError
    where it fails; a sqlite file that is not there yet is made when it is needed.
    """
    uri = tracking_uri()
    database = database_file(uri)
    if database is not None and not database.exists():
        return
    with translate_errors(uri):
        connect(uri).search_experiments(max_results=1)

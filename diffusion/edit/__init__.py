"""Editing: pictures restored from measurements, or sampled again, by a model that was not trained for it."""

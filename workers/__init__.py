"""The hands: Celery workers that turn queued edits into proven versions."""

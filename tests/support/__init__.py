"""What several test rooms share: a tiny model built in code, and preference rows."""

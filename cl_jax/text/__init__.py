"""Text as a source of data."""

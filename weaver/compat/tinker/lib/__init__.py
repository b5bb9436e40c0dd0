"""What stands behind the names of this package."""

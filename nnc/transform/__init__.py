"""Changes of the basis of a plane's columns."""

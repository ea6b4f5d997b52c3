"""Entropy models: integer tables for levels, by scale index and quantizer.  No weight is ever seen here."""

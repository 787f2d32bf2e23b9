"""One file per experiment; `common` holds what they share."""

"""What `make proof` runs against the installed wheel; docs/privacy.md says which test holds which promise."""

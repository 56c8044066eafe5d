"""Generated code of tbot's protocol; `make proto` makes it."""

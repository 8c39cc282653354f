"""What every room needs and any other company's gateway would want unchanged: it imports nothing else of `app`."""
